package qemu

import (
	"errors"
	"os"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vhostuser"
	"github.com/applevm/applevm/vmm/virtiofs"
	"github.com/applevm/applevm/vmm/vsock"
)

// devices are the devices that this process serves: vsock, and then the shares. A share
// that another serves has no server here.
type devices struct {
	list    []servedDevice
	watcher *virtiofs.Watcher // of the shares
	report  func(error)
}

type servedDevice struct {
	server *vhostuser.Server // nil if another process serves it
	theirs *os.File          // QEMU's end of the connection
	files  *virtiofs.Device  // of a share
	served chan struct{}     // closed when the server has ended; nil before it began
}

// newDevices makes all devices. The shares' directories are opened now.
func newDevices(vs *vsock.Device, shares []vmm.Share, other func(vmm.Share) (*os.File, error), report func(error)) (_ *devices, err error) {
	d := &devices{report: report}
	defer func() {
		if err != nil {
			d.closeTheirs()
			_ = d.close()
		}
	}()
	if err := d.add(vs, nil); err != nil {
		return nil, err
	}
	byTag := map[string]*virtiofs.Device{}
	for _, s := range shares {
		if other != nil {
			theirs, err := other(s)
			if err != nil {
				return nil, err
			}
			d.list = append(d.list, servedDevice{theirs: theirs})
			continue
		}
		files, err := virtiofs.New(s, report)
		if err != nil {
			return nil, err
		}
		if err := d.add(files, files); err != nil {
			return nil, errors.Join(err, files.Close())
		}
		byTag[s.Tag] = files
	}
	d.watcher = virtiofs.NewWatcher(byTag)
	return d, nil
}

func (d *devices) add(dev vhostuser.Device, files *virtiofs.Device) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	d.list = append(d.list, servedDevice{server: vhostuser.NewServer(ours, dev, d.report), theirs: theirs, files: files})
	return nil
}

// vsock is the file by which QEMU reaches the vsock device.
func (d *devices) vsock() *os.File { return d.list[0].theirs }

// shares are the files by which QEMU reaches the shares.
func (d *devices) shares() []*os.File {
	var files []*os.File
	for _, s := range d.list[1:] {
		files = append(files, s.theirs)
	}
	return files
}

// last is the server of the device that QEMU makes last.
func (d *devices) last() *vhostuser.Server { return d.list[0].server }

// closeTheirs closes this process's copies of what QEMU has inherited.
func (d *devices) closeTheirs() {
	for _, s := range d.list {
		_ = s.theirs.Close()
	}
}

// serve begins to answer QEMU.
func (d *devices) serve() {
	for i := range d.list {
		s := &d.list[i]
		if s.server == nil {
			continue
		}
		s.served = make(chan struct{})
		go func() {
			defer close(s.served)
			if err := s.server.Serve(); err != nil {
				d.report(err)
			}
		}()
	}
}

// close ends all servers and gives up the shares' files.
func (d *devices) close() error {
	if d.watcher != nil {
		d.watcher.Close()
	}
	var errs []error
	for _, s := range d.list {
		if s.server == nil {
			continue
		}
		_ = s.server.Close()
		if s.served != nil {
			<-s.served
		}
		if s.files != nil {
			errs = append(errs, s.files.Close())
		}
	}
	return errors.Join(errs...)
}
