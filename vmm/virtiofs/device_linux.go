package virtiofs

import (
	"fmt"
	"io"
	"log"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/applevm/applevm/vmm/vhostuser"
)

// The device's queues (virtio 1.2 section 5.11.2): one for what must not wait
// behind I/O, which Linux uses for FORGET, and one for all else.
const (
	queueHigh = iota
	queueRequests
	numQueues
)

// workers is how many requests of each queue are executed at a time. Each holds at
// most maxRequest and maxAnswer bytes.
var workers = [numQueues]int{queueHigh: 1, queueRequests: 8}

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

	mu     sync.Mutex
	active [numQueues]int
	again  [numQueues]bool // the guest kicked while all workers were busy
	idle   *sync.Cond
}

// New returns a device that shares the directory at path, which is opened now: what
// is mounted there later, or whether it still is, makes no difference. Faults of
// the guest and of the server are given to report, which must not block.
func New(path string, readOnly bool, report func(error)) (*Device, error) {
	fs, err := newFileSystem(path, readOnly)
	if err != nil {
		return nil, err
	}
	return newDevice(fs, report), nil
}

// NewFiles returns a device that shares regular files, and nothing beside them: its
// tree is a directory that holds the first by the name "0", the second by "1" and so on.
func NewFiles(paths []string, readOnly bool, report func(error)) (*Device, error) {
	fs, err := newFiles(paths, readOnly)
	if err != nil {
		return nil, err
	}
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

// HandleQueue implements vhostuser.Device. It leaves the work, which may have to
// wait for a disk, to workers.
func (d *Device) HandleQueue(i int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.again[i] = true
	d.startWorker(i)
	return nil
}

// startWorker adds a worker if one more is allowed. The caller holds d.mu.
func (d *Device) startWorker(i int) {
	if d.active[i] < workers[i] {
		d.active[i]++
		go d.work(i)
	}
}

// work executes requests until there are no more.
func (d *Device) work(i int) {
	for {
		d.mu.Lock()
		d.again[i] = false
		d.mu.Unlock()
		for {
			req, space, answer, err := take(d.queues[i])
			if err != nil {
				d.report(fmt.Errorf("shared directory: %w", err))
			}
			if answer == nil {
				break
			}
			// There may be more, which need not wait for this one.
			d.mu.Lock()
			d.startWorker(i)
			d.mu.Unlock()
			if err := answer(d.execute(req, space)); err != nil {
				d.report(fmt.Errorf("shared directory: %w", err))
			}
		}
		d.mu.Lock()
		if !d.again[i] {
			d.active[i]--
			d.idle.Broadcast()
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
	}
}

// take copies the next request out of the guest's memory. space is the room for
// its answer, in bytes; answer is nil if there is no request.
func take(q *vhostuser.Queue) (req []byte, space int, answer func([]byte) error, err error) {
	if !q.Lock() {
		return nil, 0, nil, nil
	}
	defer q.Unlock()
	c, err := q.Next()
	if err != nil || c == nil {
		return nil, 0, nil, err
	}
	// One that is longer fails the check of its length.
	req = make([]byte, min(c.Readable.Len(), maxRequest))
	c.Readable.CopyOut(req, 0)
	space = int(min(c.Writable.Len(), maxAnswer))
	token := q.Defer(c)
	return req, space, func(b []byte) error { return q.Complete(token, b) }, nil
}

// execute returns the answer to a request, empty if there is none.
func (d *Device) execute(req []byte, space int) []byte {
	h, refused, ok := check(req, space)
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
	out := make([]byte, space)
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
		d.active = [numQueues]int{}
		d.idle.Broadcast()
	})
	defer timer.Stop()
	d.mu.Lock()
	for d.active[queueHigh] > 0 || d.active[queueRequests] > 0 {
		d.idle.Wait()
	}
	d.mu.Unlock()
	return d.fs.close()
}
