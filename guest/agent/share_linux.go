package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// maxShareTag is the longest tag of a virtio file system device, in bytes (virtio 1.2
// section 5.11.4).
const maxShareTag = 36

// share is a directory that the host shares, mounted for the spec.
type share struct {
	tag, path string
	device    uint64 // as stat(2) has it
}

// mountShares mounts the directories that the spec's mounts share, and makes these
// binds of them: a user namespace may bind, but not mount one itself.
func (c *container) mountShares(spec *specs.Spec) error {
	var synced []string
	if c.rootfs.shared {
		synced = append(synced, c.rootfs.path)
	}
	dir := filepath.Join(c.dir, "shares")
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if m.Type != api.ShareMount {
			continue
		}
		if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		copyUp := slices.Contains(m.Options, api.CopyUpOption)
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == api.CopyUpOption })
		tag, file, isFile := strings.Cut(m.Source, "/")
		if isFile && (file == "" || strings.Trim(file, "0123456789") != "") {
			return invalid("%q is no file of a share", m.Source)
		}
		target := filepath.Join(dir, tag)
		if !slices.ContainsFunc(c.shares, func(s share) bool { return s.tag == tag }) {
			if err := mountShare(&guestv1.Share{Tag: tag}, target); err != nil {
				return err
			}
			c.shares = append(c.shares, share{tag: tag, path: target})
			var st unix.Stat_t
			if err := unix.Stat(target, &st); err != nil {
				return &os.PathError{Op: "stat", Path: target, Err: err}
			}
			c.shares[len(c.shares)-1].device = st.Dev
			synced = append(synced, target)
		}
		makeBind(m, filepath.Join(target, file))
		if copyUp {
			c.volumes = append(c.volumes, volume{m.Source, m.Destination})
		}
	}
	if len(synced) > 0 {
		c.syncer = newSyncer(synced)
	}
	return nil
}

// makeBind makes a mount one of what is at path in the machine, with all that is mounted below.
func makeBind(m *specs.Mount, path string) {
	m.Type, m.Source = "bind", path
	m.Options = append([]string{"rbind"}, slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "bind" || o == "rbind" })...)
}

// unmountShares undoes mountShares. It may be repeated after a failure.
func (c *container) unmountShares() error {
	c.sharesMu.Lock()
	defer c.sharesMu.Unlock()
	for len(c.shares) > 0 {
		if err := unix.Unmount(c.shares[0].path, 0); err != nil {
			return fmt.Errorf("unmount a directory that the host shares: %w", err)
		}
		_ = os.Remove(c.shares[0].path)
		c.shares = c.shares[1:]
	}
	return nil
}

// mountShare mounts a directory that the host shares at target, which it makes.
func mountShare(s *guestv1.Share, target string) error {
	tag := s.GetTag()
	if tag == "" || len(tag) > maxShareTag || strings.Trim(tag, diskIDChars) != "" || strings.Trim(tag, ".") == "" {
		return invalid("%q is no share's tag", tag)
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	flags := uintptr(0)
	if s.GetReadOnly() {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount(tag, target, "virtiofs", flags, ""); err != nil {
		_ = os.Remove(target)
		return fmt.Errorf("mount the directory that the host shares as %q: %w", tag, err)
	}
	return nil
}
