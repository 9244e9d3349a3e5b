package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// maxFiles bounds the files of one container; each is a mount.
const maxFiles = 256

// files are the files that were made for a container.
type files struct {
	mu    sync.Mutex        // one change at a time
	paths map[string]string // in the machine, by those in the container
}

// setFile gives one of the files new content, in place: the container has it mounted. It
// is never longer than its old or its new content, and empty at no time.
func (c *container) setFile(name string, content []byte) error {
	p, ok := c.files.paths[name]
	switch {
	case !ok:
		return fmt.Errorf("container %q: no file %q was made for it: %w", c.id, name, errdefs.ErrNotFound)
	case len(content) > api.MaxFile:
		return invalid("file %s is %d bytes long, more than %d", name, len(content), api.MaxFile)
	}
	c.files.mu.Lock()
	defer c.files.mu.Unlock()
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	return errors.Join(err, f.Truncate(int64(len(content))), f.Close())
}

// addFiles writes files into the directory dir, which it makes, and adds the
// mounts to s that bring them to their paths. Files of root's are the
// container's root's. It returns where they are, by their paths.
func addFiles(s *specs.Spec, files []*guestv1.File, dir string, ids *idmap) (map[string]string, error) {
	if len(files) > maxFiles {
		return nil, invalid("%d files, more than %d", len(files), maxFiles)
	}
	if len(files) == 0 {
		return nil, nil
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	paths := map[string]string{}
	for i, f := range files {
		if !path.IsAbs(f.GetPath()) || path.Clean(f.GetPath()) == "/" {
			return nil, invalid("file %q: the path is not absolute", f.GetPath())
		}
		if len(f.GetContent()) > api.MaxFile {
			return nil, invalid("file %s is %d bytes long, more than %d", f.GetPath(), len(f.GetContent()), api.MaxFile)
		}
		p := filepath.Join(dir, fmt.Sprint(i))
		if err := writeFile(p, f, ids); err != nil {
			return nil, err
		}
		paths[f.GetPath()] = p
		options := []string{"rbind", "rprivate"}
		if f.GetReadOnly() {
			options = append(options, "ro")
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: f.GetPath(), Type: "bind", Source: p, Options: options})
	}
	return paths, nil
}

// possibleFiles leaves out optional files that need a change of a root file
// system that takes none.
func possibleFiles(files []*guestv1.File, root string, writable bool) []*guestv1.File {
	if writable {
		return files
	}
	return slices.DeleteFunc(slices.Clone(files), func(f *guestv1.File) bool {
		if !f.GetOptional() {
			return false
		}
		there, err := openIn(root, f.GetPath())
		if err != nil {
			return true
		}
		_ = there.Close()
		return false
	})
}

func writeFile(p string, f *guestv1.File, ids *idmap) error {
	if err := os.WriteFile(p, f.GetContent(), 0o600); err != nil {
		return err
	}
	uid, gid := ids.of(f.GetUid(), f.GetGid())
	if err := os.Chown(p, uid, gid); err != nil {
		return err
	}
	return os.Chmod(p, os.FileMode(f.GetMode()&0o777))
}
