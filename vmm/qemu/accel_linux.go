package qemu

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/applevm/applevm/guest/api"
)

const (
	// probeTimeout bounds the trial boot: under KVM a guest needs a fraction of it.
	probeTimeout = 3 * time.Second
	probeMemory  = 256 << 20
)

// accelerator decides how p's guest is run.
func (d *driver) accelerator(ctx context.Context, p plan) (string, error) {
	switch {
	case p.Arch != hostArch():
		return "tcg", nil
	case d.opts.Accel != "" && d.opts.Accel != "auto":
		return d.opts.Accel, nil
	case !usableKVM():
		return "tcg", nil
	}
	if err := d.cache.open(); err != nil {
		return "", err
	}
	// The answer depends on QEMU, the kernel and (the cache's business) the
	// host's boot.
	id, err := fileID(p.binary, p.Kernel)
	if err != nil {
		return "", err
	}
	key := "accel-" + id
	if v, ok := d.cache.get(key); ok {
		return v, nil
	}
	unlock, err := d.cache.lock(ctx, "accel")
	if err != nil {
		return "", err
	}
	defer unlock()
	if v, ok := d.cache.get(key); ok {
		return v, nil
	}
	accel := "tcg"
	if err := probeKVM(ctx, p); err == nil {
		accel = "kvm"
	} else if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return accel, d.cache.put(key, accel)
}

// usableKVM says whether this user can open KVM; whether guests run is for the probe.
func usableKVM() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// probeKVM boots p's kernel and initramfs under KVM until the guest's init says
// its first line. Some hosts let /dev/kvm be opened and then hang or abort each
// ordinary guest; only a boot shows it.
func probeKVM(ctx context.Context, p plan) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p.accel, p.bare = "kvm", true
	p.Name, p.CPUs, p.Memory, p.Disks = "probe", 1, min(p.Memory, probeMemory), nil

	cmd := exec.CommandContext(ctx, p.binary, p.args()...)
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := startBound(cmd, false, nil); err != nil {
		return err
	}
	defer func() {
		cancel() // kills it
		_ = cmd.Wait()
	}()
	// The lines of a guest are as long as it likes: bounded here.
	r := bufio.NewReaderSize(io.LimitReader(out, 1<<20), 4<<10)
	for {
		line, err := r.ReadString('\n')
		if strings.Contains(line, api.ReadyLine) {
			return nil
		}
		if err != nil {
			return errors.Join(errors.New("the guest did not come up under KVM"), ctx.Err())
		}
	}
}
