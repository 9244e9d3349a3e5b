package virtiofs

import (
	"fmt"
	"io"
	"log"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vhostuser"
)

// The device's queues (virtio 1.2 section 5.11.2): one for what must not wait
// behind I/O, which Linux uses for FORGET, and one for all else.
const (
	queueHigh = iota
	queueRequests
	numQueues
)

// closeTimeout bounds the wait for what the host's file system is doing when the
// guest is gone.
const closeTimeout = 5 * time.Second

// Device is the virtio file system device of one share. It implements
// vhostuser.Device.
type Device struct {
	queues [numQueues]*vhostuser.Queue
	fs     *fileSystem
	server *fuse.ProtocolServer
	report func(error)

	// session is held for writing by the requests that begin and end a mount,
	// which nothing else may run beside.
	session sync.RWMutex

	buffers sync.Pool // of *[]byte, maxRequest long

	mu       sync.Mutex
	lanes    [numQueues]lane
	active   int // requests that are executed
	idle     *sync.Cond
	watching bool
}

// New returns a device that serves a share, whose directory or files are opened now: what is
// mounted in their place later, or whether they still are there, makes no difference. Faults of
// the guest and of the server are given to report, which must not block.
func New(s vmm.Share, report func(error)) (*Device, error) {
	var fs *fileSystem
	var err error
	if len(s.Files) > 0 {
		fs, err = newFiles(s.Files, s.ReadOnly)
	} else {
		fs, err = newFileSystem(s.Path, s.ReadOnly)
	}
	if err != nil {
		return nil, err
	}
	fs.oneMount = s.OneMount
	return newDevice(fs, report), nil
}

func newDevice(fs *fileSystem, report func(error)) *Device {
	d := &Device{queues: [numQueues]*vhostuser.Queue{{}, {}}, fs: fs, report: report}
	d.idle = sync.NewCond(&d.mu)
	d.server = fuse.NewProtocolServer(fs, &fuse.MountOptions{
		MaxWrite:             maxIO,
		MaxBackground:        16,
		EnableSymlinkCaching: true,
		// The guest asks for the attributes of a directory's files where it has use for
		// them: each takes a descriptor here.
		ExtraCapabilities: fuse.CAP_READDIRPLUS_AUTO,
		// Of the first two a guest on a machine has no use, the third is ID-mapped
		// mounts, for which new files would need mapping here.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_ALLOW_IDMAP,
		Logger:               log.New(io.Discard, "", 0), // the guest could fill the host's log
		PanicHandler: func(v any) fuse.Status {
			report(fmt.Errorf("file server: %v", v))
			return fuse.EIO
		},
	})
	return d
}

// Features implements vhostuser.Device.
func (d *Device) Features() uint64 { return 0 }

// Queues implements vhostuser.Device.
func (d *Device) Queues() []*vhostuser.Queue { return d.queues[:] }

// Config implements vhostuser.Device: QEMU knows the tag, and has no use for ours.
func (d *Device) Config() []byte { return nil }

// request is what the guest asks for.
type request struct {
	data  []byte
	space int // room for the answer, in bytes
	// answer gives the answer to the guest. The request's data are not used after it.
	answer func([]byte) error
}

// take copies the next request out of the guest's memory, nil if there is none. more
// tells that another waits.
func (d *Device) take(q *vhostuser.Queue) (r *request, more bool, err error) {
	if !q.Lock() {
		return nil, false, nil
	}
	defer q.Unlock()
	c, err := q.Next()
	if err != nil || c == nil {
		return nil, false, err
	}
	// One that is longer fails the check of its length.
	data := d.buffer(int(min(c.Readable.Len(), maxRequest)))
	c.Readable.CopyOut(data, 0)
	space := int(min(c.Writable.Len(), maxAnswer))
	token := q.Defer(c)
	return &request{data, space, func(b []byte) error { return q.Complete(token, b) }}, q.Pending(), nil
}

// pooled is from how many bytes on a buffer is used again: making one costs more than the
// request then.
const pooled = 16 << 10

// buffer returns one of n bytes, at most maxRequest, in which may be anything.
func (d *Device) buffer(n int) []byte {
	if n < pooled {
		return make([]byte, n)
	}
	if b, ok := d.buffers.Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, maxRequest)
}

func (d *Device) free(b []byte) {
	if cap(b) == maxRequest {
		b = b[:maxRequest]
		d.buffers.Put(&b)
	}
}

// do executes a request and answers it.
func (d *Device) do(r *request) {
	out := d.buffer(r.space)
	err := r.answer(d.execute(r.data, out))
	d.free(r.data)
	d.free(out)
	if err != nil {
		d.report(fmt.Errorf("shared directory: %w", err))
	}
}

// execute returns the answer to a request, empty if there is none. It writes it to out
// if it fits.
func (d *Device) execute(req, out []byte) []byte {
	h, refused, ok := check(req, len(out))
	switch {
	case !ok:
		return nil
	case refused != 0:
		return refuse(h, refused)
	}
	if h.opcode == opInit || h.opcode == opDestroy {
		d.session.Lock()
		defer d.session.Unlock()
		d.fs.forgetAll()
	} else {
		d.session.RLock()
		defer d.session.RUnlock()
	}
	n, status := d.server.HandleRequest([][]byte{req}, [][]byte{out})
	switch {
	case h.silent():
		return nil
	case n < outHeaderSize:
		if status.Ok() {
			status = fuse.EIO
		}
		return refuse(h, syscall.Errno(status))
	}
	return out[:n]
}

// Close gives up all files once no request is under way any more; those for which the
// host's file system takes too long are given up when they end. The device's
// server must have ended.
func (d *Device) Close() error {
	timer := time.AfterFunc(closeTimeout, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.active = 0
		d.idle.Broadcast()
	})
	defer timer.Stop()
	d.mu.Lock()
	for d.active > 0 {
		d.idle.Wait()
	}
	d.mu.Unlock()
	return d.fs.close()
}
