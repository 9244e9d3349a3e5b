package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cache remembers findings about the host as small files, each valid for one
// boot of it.
type cache struct{ dir string }

// open makes the directory, and refuses one that another user could write to.
func (c cache) open() error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("cache directory: %w", err)
	}
	fi, err := os.Stat(c.dir)
	if err != nil {
		return fmt.Errorf("cache directory: %w", err)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Getuid() || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("cache directory %s belongs to somebody else or is writable for others; set qemu.cache_dir", c.dir)
	}
	return nil
}

// get returns what put stored under name in this boot.
func (c cache) get(name string) (string, bool) {
	b, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		return "", false
	}
	boot, value, ok := strings.Cut(strings.TrimSuffix(string(b), "\n"), "\n")
	return value, ok && boot == bootID()
}

// put stores value under name.
func (c cache) put(name, value string) error {
	f, err := os.CreateTemp(c.dir, "."+name+"-")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s\n%s\n", bootID(), value)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// lock keeps other processes from finding out the same at the same time.
func (c cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.dir, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("wait for another process's probe: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// mmioParameter says whether a kernel file takes the virtio_mmio.device=
// parameter (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES): its name is in the file then.
func (c cache) mmioParameter(kernel string) (bool, error) {
	id, err := fileID(kernel)
	if err != nil {
		return false, err
	}
	if v, ok := c.get("mmio-" + id); ok {
		return v == "yes", nil
	}
	f, err := os.Open(kernel)
	if err != nil {
		return false, fmt.Errorf("guest kernel: %w", err)
	}
	defer f.Close()
	found, err := contains(f, "\x00virtio_mmio.device\x00")
	if err != nil {
		return false, fmt.Errorf("guest kernel: %w", err)
	}
	answer := "no"
	if found {
		answer = "yes"
	}
	if c.open() == nil {
		_ = c.put("mmio-"+id, answer) // looked up again next time
	}
	return found, nil
}

// contains says whether text is in what r has. A kernel is too big to be held: the
// memory would stay with the shim.
func contains(r io.Reader, text string) (bool, error) {
	buf := make([]byte, 64<<10)
	kept := 0 // the last bytes of before, in which text may begin
	for {
		n, err := io.ReadFull(r, buf[kept:])
		if bytes.Contains(buf[:kept+n], []byte(text)) {
			return true, nil
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return false, nil
		case err != nil:
			return false, err
		}
		kept = copy(buf, buf[len(buf)-len(text)+1:])
	}
}

// fileID changes with any of the files.
func fileID(paths ...string) (string, error) {
	h := sha256.New()
	for _, path := range paths {
		fi, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d %d\n", path, fi.Size(), fi.ModTime().UnixNano())
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// tscKHz is the frequency of the time stamp counter, measured once per boot.
func (c cache) tscKHz() int {
	const name = "tsc"
	if v, ok := c.get(name); ok {
		if khz, err := strconv.Atoi(v); err == nil && khz > 0 {
			return khz
		}
	}
	khz := measureTSC()
	if khz > 0 && c.open() == nil {
		_ = c.put(name, strconv.Itoa(khz)) // measured again next time
	}
	return khz
}
