package rootfiles

import (
	"fmt"

	"golang.org/x/sys/unix"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// maxXattr is the longest value and the longest list of names (XATTR_SIZE_MAX and
// XATTR_LIST_MAX, linux/limits.h).
const maxXattr = 64 << 10

func fdLink(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (p place) getXattr(name string, resp *guestv1.FileResponse) error {
	return p.byLink(func(link string) error {
		b := make([]byte, maxXattr)
		var n int
		var err error
		if name == "" {
			n, err = unix.Listxattr(link, b)
		} else {
			n, err = unix.Getxattr(link, name, b)
		}
		if err != nil {
			return err
		}
		resp.Data = b[:n]
		return nil
	})
}

func (p place) setXattr(op *guestv1.FileSetXattr) error {
	return p.byLink(func(link string) error {
		if op.GetRemove() {
			return unix.Removexattr(link, string(op.GetName()))
		}
		return unix.Setxattr(link, string(op.GetName()), op.GetValue(), int(op.GetFlags()))
	})
}
