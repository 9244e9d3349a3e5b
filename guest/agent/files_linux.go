package agent

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// maxFiles bounds the files of one container; each is a mount.
const maxFiles = 256

// addFiles writes files into the directory dir, which it makes, and adds the
// mounts to s that bring them to their paths. Files of root's are the
// container's root's.
func addFiles(s *specs.Spec, files []*guestv1.File, dir string, ids *idmap) error {
	if len(files) > maxFiles {
		return invalid("%d files, more than %d", len(files), maxFiles)
	}
	if len(files) == 0 {
		return nil
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	for i, f := range files {
		if !path.IsAbs(f.GetPath()) || path.Clean(f.GetPath()) == "/" {
			return invalid("file %q: the path is not absolute", f.GetPath())
		}
		if len(f.GetContent()) > api.MaxFile {
			return invalid("file %s is %d bytes long, more than %d", f.GetPath(), len(f.GetContent()), api.MaxFile)
		}
		p := filepath.Join(dir, fmt.Sprint(i))
		if err := writeFile(p, f, ids); err != nil {
			return err
		}
		options := []string{"rbind", "rprivate"}
		if f.GetReadOnly() {
			options = append(options, "ro")
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: f.GetPath(), Type: "bind", Source: p, Options: options})
	}
	return nil
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
