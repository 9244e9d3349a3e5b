package view

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/ext4"
	"github.com/applevm/applevm/snapshotter/union"
)

// idle is after how long the images of a snapshot that nobody reads are closed.
const idle = 10 * time.Second

// tree is the file system of one snapshot. Its images are open while it is read.
type tree struct {
	root string // the snapshotter's
	id   string
	seq  uint64 // tells the snapshots' files apart

	mu    sync.Mutex
	open  *opened
	timer *time.Timer
	gen   uint64 // of the last opened
}

// opened is a tree whose images are open, in one state of the writable one.
type opened struct {
	gen      uint64
	files    []*os.File
	writable *os.File // one of files, or nil
	state    state
	places   []union.Place // the roots, the highest layer's first
	layers   map[union.Layer]uint64
	nodes    map[string]union.Node // found so far, by path; "" is the root
}

// state tells one state of a file from a later one.
type state struct{ modified, size int64 }

// errBusy says that a container runs on the snapshot: what its kernel has not written
// yet nobody else sees, and what it writes meanwhile is not whole.
var errBusy = syscall.EBUSY

// do calls f with the tree's images open, as they are while f runs.
func (t *tree) do(f func(o *opened) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open != nil && t.open.changed() {
		t.closeLocked()
	}
	if t.open == nil {
		if err := t.openLocked(); err != nil {
			return err
		}
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	t.timer = time.AfterFunc(idle, t.close)
	if err := t.open.busy(); err != nil {
		return err
	}
	err := f(t.open)
	if t.open.changed() || t.open.busy() != nil {
		return errBusy
	}
	return err
}

func (t *tree) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeLocked()
}

func (t *tree) closeLocked() {
	if t.open != nil {
		t.open.close()
		t.open = nil
	}
}

func (t *tree) openLocked() error {
	snap, err := find(t.root, t.id)
	if err != nil {
		return err
	}
	t.gen++
	o := &opened{gen: t.gen, layers: map[union.Layer]uint64{}, nodes: map[string]union.Node{}}
	if snap.writable != "" {
		if o.writable, err = os.Open(snap.writable); err != nil {
			return err
		}
		o.files = append(o.files, o.writable)
		err = o.busy()
		if err == nil {
			o.state, err = stateOf(o.writable)
		}
		if err == nil {
			_, err = o.add(o.writable, api.UpperDir)
		}
	}
	for _, l := range snap.layers {
		if err != nil {
			break
		}
		var f *os.File
		if f, err = os.Open(l); err != nil {
			break
		}
		o.files = append(o.files, f)
		var opaque bool
		if opaque, err = o.add(f, manifest.LayerRoot); opaque {
			break
		}
	}
	if err == nil && len(o.places) == 0 {
		err = fmt.Errorf("snapshot %s has no root directory: %w", t.id, iofs.ErrNotExist)
	}
	if err != nil {
		o.close()
		return err
	}
	info, err := o.places[0].Lstat()
	if err != nil {
		o.close()
		return err
	}
	o.nodes[""] = union.Node{Info: info, Dirs: o.places}
	t.open = o
	return nil
}

// add puts an image under those that were added before. Its tree is in the directory
// dir, which is not there yet if no guest has mounted the image.
func (o *opened) add(f *os.File, dir string) (opaque bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	image, err := ext4.Open(f, st.Size())
	if err != nil {
		return false, fmt.Errorf("image %s: %w", f.Name(), err)
	}
	p := union.Place{Layer: image, Path: dir}
	if _, err := p.Lstat(); errors.Is(err, iofs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("image %s: %w", f.Name(), err)
	}
	o.layers[image] = uint64(len(o.places))
	o.places = append(o.places, p)
	return p.Opaque()
}

func (o *opened) close() {
	for _, f := range o.files {
		_ = f.Close()
	}
}

func stateOf(f *os.File) (state, error) {
	st, err := f.Stat()
	if err != nil {
		return state{}, err
	}
	return state{st.ModTime().UnixNano(), st.Size()}, nil
}

// changed reports whether a container has written since the image was opened.
func (o *opened) changed() bool {
	if o.writable == nil {
		return false
	}
	now, err := stateOf(o.writable)
	return err != nil || now != o.state
}

// Where QEMU locks an image (block/file-posix.c, RAW_LOCK_PERM_BASE and
// RAW_LOCK_SHARED_BASE: 64 bytes from each).
const lockStart, lockLength = 100, 200

// Of an ext4 superblock (Documentation/filesystems/ext4/super.rst).
const (
	incompatAt      = 1024 + 0x60
	incompatRecover = 4 // mounted, and not frozen
)

// busy returns errBusy if a machine runs on the image, unless it has frozen its file
// system, as a machine does when its container is paused or has ended.
func (o *opened) busy() error {
	if o.writable == nil {
		return nil
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: lockStart, Len: lockLength}
	if err := unix.FcntlFlock(o.writable.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return fmt.Errorf("is %s locked: %w", o.writable.Name(), err)
	}
	if lock.Type == unix.F_UNLCK {
		return nil
	}
	var b [4]byte
	if _, err := o.writable.ReadAt(b[:], incompatAt); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b[:])&incompatRecover != 0 {
		return errBusy
	}
	return nil
}

// lookup finds a file by its path in the tree.
func (o *opened) lookup(name string) (union.Node, error) {
	if n, ok := o.nodes[name]; ok {
		return n, nil
	}
	dir, base := path.Split(name)
	parent, err := o.lookup(path.Clean("/" + dir)[1:])
	if err != nil {
		return union.Node{}, err
	}
	if parent.Dirs == nil {
		return union.Node{}, syscall.ENOTDIR
	}
	n, err := union.Lookup(parent.Dirs, base)
	if err == nil {
		o.nodes[name] = n
	}
	return n, err
}

// place is where a file's attributes and content are.
func place(n union.Node) union.Place {
	if n.Dirs != nil {
		return n.Dirs[0]
	}
	return n.File
}
