package procroot

import (
	"context"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// maxEntries is the longest directory that is listed: a guest's could be endless.
const maxEntries = 4 << 20

var _ fs.NodeReaddirer = (*node)(nil)

// Readdir implements fs.NodeReaddirer.
func (n *node) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	if n.IsRoot() && n.root.call.Load() == nil {
		return fs.NewListDirStream(nil), 0
	}
	l := &listing{n: n, left: n.root.maxEntries}
	return l, l.fill(ctx)
}

// listing reads a directory, a part at a time.
type listing struct {
	n       *node
	entries []*guestv1.DirectoryEntry // that are read and not given away
	after   int64
	left    int
	errno   syscall.Errno
	ended   bool
}

func (l *listing) fill(ctx context.Context) syscall.Errno {
	resp, errno := l.n.root.do(ctx, l.n.path(), &guestv1.FileRequest{
		Operation: &guestv1.FileRequest_List{List: &guestv1.FileList{After: l.after}}})
	if errno != 0 {
		return errno
	}
	got := resp.GetEntries()
	if len(got) > api.MaxFileEntries || len(got) > l.left {
		return syscall.EIO
	}
	for _, e := range got {
		if !isName(string(e.GetName())) {
			return syscall.EIO
		}
	}
	if l.ended = len(got) == 0; !l.ended {
		l.after = got[len(got)-1].GetCookie()
	}
	l.entries, l.left = got, l.left-len(got)
	return 0
}

func isName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= unix.NAME_MAX && !strings.ContainsAny(s, "/\x00")
}

// HasNext implements fs.DirStream.
func (l *listing) HasNext() bool {
	if len(l.entries) == 0 && !l.ended && l.errno == 0 {
		l.errno = l.fill(context.Background())
	}
	return len(l.entries) > 0 || l.errno != 0
}

// Next implements fs.DirStream.
func (l *listing) Next() (fuse.DirEntry, syscall.Errno) {
	if l.errno != 0 {
		return fuse.DirEntry{}, l.errno
	}
	e := l.entries[0]
	l.entries = l.entries[1:]
	return fuse.DirEntry{Name: string(e.GetName()), Mode: (e.GetType() & 0xf) << 12, Ino: e.GetIno()}, 0
}

// Close implements fs.DirStream.
func (l *listing) Close() {}
