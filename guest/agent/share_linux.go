package agent

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// maxShareTag is the longest tag of a virtio file system device, in bytes (virtio 1.2
// section 5.11.4).
const maxShareTag = 36

// mountShare mounts a directory that the host shares at target, which it makes.
func mountShare(s *guestv1.Share, target string) error {
	tag := s.GetTag()
	if tag == "" || len(tag) > maxShareTag || strings.Trim(tag, diskIDChars) != "" {
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
