package view

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/log"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// view is a mounted view.
type view struct {
	root string

	mu    sync.Mutex
	trees map[string]*tree
	seq   uint64 // of the last tree
}

// IsMounted reports whether a view is mounted for the snapshotter with this root
// directory, and somebody serves it.
func IsMounted(root string) bool {
	var st unix.Statfs_t
	return unix.Statfs(Dir(root), &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC
}

// Serve mounts the view for the snapshotter with this root directory, calls ready if it is
// not nil, and serves until ctx ends. A view that a killed process has left there is
// taken away first.
func Serve(ctx context.Context, root string, ready func()) error {
	for unix.Unmount(Dir(root), unix.MNT_DETACH) == nil {
	}
	dir, err := makeDir(root)
	if err != nil {
		return fmt.Errorf("show snapshots: %w", err)
	}
	// The kernel may keep names and attributes of a snapshot for a moment, but not which
	// snapshots there are, nor their roots.
	moment, none := time.Second, time.Duration(0)
	v := &view{root: root, trees: map[string]*tree{}}
	server, err := fs.Mount(dir, &top{view: v}, &fs.Options{
		EntryTimeout: &moment, AttrTimeout: &moment, NegativeTimeout: &none,
		MountOptions: fuse.MountOptions{
			FsName: "applevm", Name: "applevm", DirectMountStrict: true,
			DirectMountFlags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
		},
	})
	if err != nil {
		return fmt.Errorf("show snapshots in %s: %w", dir, err)
	}
	if ready != nil {
		ready()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Wait()
	}()
	select {
	case <-ended:
		return fmt.Errorf("the view on %s was unmounted", dir)
	case <-ctx.Done():
	}
	// Clients that have bind-mounted a part of it get errors from now on.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return os.Remove(dir)
}

// tree finds or makes the tree of a snapshot.
func (v *view) tree(id string) *tree {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.trees[id]
	if t == nil {
		v.seq++
		t = &tree{id: id, root: v.root, seq: v.seq}
		v.trees[id] = t
	}
	return t
}

// top is the view's own directory.
type top struct {
	fs.Inode
	view *view
}

var _ fs.NodeLookuper = (*top)(nil)

// Lookup implements fs.NodeLookuper.
func (r *top) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if _, err := find(r.view.root, name); err != nil {
		return nil, errno(ctx, err)
	}
	t := r.view.tree(name)
	n := &node{tree: t}
	if e := n.attr(ctx, &out.Attr); e != 0 {
		return nil, e
	}
	out.SetEntryTimeout(0)
	return r.NewInode(ctx, n, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: t.seq << seqShift}), 0
}

// Readdir implements fs.NodeReaddirer: snapshots can be entered, not listed, so that
// whoever walks through the host's files does not walk through all of them.
func (r *top) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	return fs.NewListDirStream(nil), 0
}

// errno is what a client is told of an error.
func errno(ctx context.Context, err error) syscall.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	case errors.Is(err, iofs.ErrNotExist):
		return syscall.ENOENT
	}
	log.G(ctx).WithError(err).Warn("a snapshot cannot be read")
	return syscall.EIO
}
