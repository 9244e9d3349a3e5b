package rootfiles

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// direntHeader is the length of struct linux_dirent64 before the name
// (getdents64(2)).
const direntHeader = 19

// list reads a part of a directory, without "." and "..".
func list(root int, path string, op *guestv1.FileList, resp *guestv1.FileResponse) error {
	fd, err := open(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if op.GetAfter() != 0 {
		if _, err := unix.Seek(fd, op.GetAfter(), unix.SEEK_SET); err != nil {
			return err
		}
	}
	b := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		for rest := b[:n]; len(rest) > direntHeader; {
			size := int(binary.NativeEndian.Uint16(rest[16:]))
			e := &guestv1.DirectoryEntry{
				Ino:    binary.NativeEndian.Uint64(rest[0:]),
				Cookie: int64(binary.NativeEndian.Uint64(rest[8:])),
				Type:   uint32(rest[18]),
			}
			name, _, _ := bytes.Cut(rest[direntHeader:size], []byte{0})
			e.Name = bytes.Clone(name) // the buffer is used again
			rest = rest[size:]
			if s := string(name); s == "." || s == ".." {
				continue
			}
			if resp.Entries = append(resp.Entries, e); len(resp.Entries) == api.MaxFileEntries {
				return nil
			}
		}
	}
}
