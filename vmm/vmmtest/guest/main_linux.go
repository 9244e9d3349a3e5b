// The guest program of the machine conformance suite: the test image's /init.
// It offers what vmm/vmmtest/proto lists, over vsock.
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/guest/modules"
	"github.com/applevm/applevm/internal/filework"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

func main() {
	fmt.Println(api.ReadyLine, "conformance guest")
	if err := run(); err != nil {
		// The end of PID 1 is a kernel panic, which ends the machine.
		fmt.Println("conformance guest:", err)
		os.Exit(1)
	}
}

func run() error {
	for _, dir := range []struct{ path, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := unix.Mount(dir.kind, dir.path, dir.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", dir.path, err)
		}
	}
	if b, err := os.ReadFile("/proc/cmdline"); err == nil && strings.Contains(string(b), "vmmtest.exit") {
		return errors.New("asked to exit by vmmtest.exit")
	}
	if err := modules.LoadAll(modules.Dir); err != nil {
		return err
	}
	go count()
	for port, serve := range map[uint32]func(net.Conn){
		proto.ControlPort: control,
		proto.EchoPort:    echo,
		proto.SinkPort:    sink,
		proto.SourcePort:  source,
		proto.HoldPort:    func(net.Conn) { select {} },
		proto.DropPort:    func(c net.Conn) { _ = c.Close() },
	} {
		l, err := vsock.Listen(port, nil)
		if err != nil {
			return err
		}
		go accept(l, serve)
	}
	// With nobody there it is no conformance test: the accelerator probe, say.
	if c, err := vsock.Dial(vmm.HostCID, proto.ReadyPort, nil); err == nil {
		_ = c.Close()
	}
	// PID 1 must stay; a signal nobody sends keeps the runtime from calling it a deadlock.
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR1)
	<-c
	return nil
}

func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Println("accept:", err)
			return
		}
		go serve(c)
	}
}

func echo(c net.Conn) {
	defer c.Close()
	if _, err := io.CopyBuffer(onlyWriter{c}, onlyReader{c}, make([]byte, 64<<10)); err == nil {
		_ = c.(*vsock.Conn).CloseWrite()
		// Closing now would end the connection before the peer has read it all.
		_, _ = c.Read(make([]byte, 1))
	}
}

// onlyReader and onlyWriter keep io.Copy from shortcuts.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

func sink(c net.Conn) {
	defer c.Close()
	var req proto.SinkRequest
	if err := binary.Read(c, binary.BigEndian, &req); err != nil {
		return
	}
	h := sha256.New()
	var w io.Writer = h
	if !req.Hash {
		w = io.Discard
	}
	n, err := io.CopyBuffer(onlyWriter{w}, io.LimitReader(c, req.Length), make([]byte, 256<<10))
	if err == nil {
		_ = json.NewEncoder(c).Encode(proto.Sum{Bytes: n, SHA256: h.Sum(nil)})
		_, _ = c.Read(make([]byte, 1))
	}
}

func source(c net.Conn) {
	defer c.Close()
	var length int64
	if err := binary.Read(c, binary.BigEndian, &length); err != nil {
		return
	}
	// A block of the pattern repeats, so that making it costs nothing.
	block := make([]byte, 256<<10)
	proto.Pattern(block, 0)
	for sent := int64(0); sent < length; {
		n, err := c.Write(block[:min(int64(len(block)), length-sent)])
		if err != nil {
			return
		}
		sent += int64(n)
	}
	_ = c.(*vsock.Conn).CloseWrite()
	_, _ = c.Read(make([]byte, 1))
}

var ticks atomic.Int64

func count() {
	for range time.Tick(10 * time.Millisecond) {
		ticks.Add(1)
	}
}

func control(c net.Conn) {
	defer c.Close()
	var req proto.Request
	if err := json.NewDecoder(c).Decode(&req); err != nil {
		return
	}
	resp, err := execute(req)
	if err != nil {
		resp.Error = err.Error()
	}
	_ = json.NewEncoder(c).Encode(resp)
}

func execute(req proto.Request) (resp proto.Response, err error) {
	switch req.Op {
	case proto.OpPowerOff:
		unix.Sync()
		return resp, unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case proto.OpPanic:
		return resp, os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case proto.OpDial:
		conn, err := vsock.Dial(vmm.HostCID, req.Port, nil)
		if err != nil {
			return resp, err
		}
		go echo(conn)
		return resp, nil
	case proto.OpDisks:
		resp.Disks, err = disks()
		return resp, err
	case proto.OpWrite:
		return resp, writeDisk(req.Disk, req.Data)
	case proto.OpRead:
		resp.Data, err = readDisk(req.Disk, req.Length)
		return resp, err
	case proto.OpFlood:
		return resp, flood(req.Length)
	case proto.OpShare:
		resp.Files, err = useShare(req.Share)
		return resp, err
	case proto.OpReadOnly:
		return resp, tryReadOnly(req.Share)
	case proto.OpFiles:
		dir, err := mountShare(req.Share)
		if err != nil {
			return resp, err
		}
		resp.Times, err = filework.Do(dir, dropCaches)
		return resp, err
	case proto.OpNIC:
		resp.MTU, err = echoFrames(req.MAC)
		return resp, err
	case proto.OpTicks:
		return proto.Response{Ticks: ticks.Load()}, nil
	}
	return resp, fmt.Errorf("unknown operation %q", req.Op)
}

func disks() (out []proto.Disk, err error) {
	paths, err := filepath.Glob("/sys/block/vd*")
	for _, p := range paths {
		serial, err := readLine(p, "serial")
		if err != nil {
			return nil, err
		}
		ro, err := readLine(p, "ro")
		if err != nil {
			return nil, err
		}
		size, err := readLine(p, "size")
		if err != nil {
			return nil, err
		}
		sectors, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, proto.Disk{Serial: serial, Size: 512 * sectors, ReadOnly: ro == "1"})
	}
	return out, err
}

func readLine(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(b)), err
}

func findDisk(serial string) (string, error) {
	paths, err := filepath.Glob("/sys/block/vd*")
	if err != nil {
		return "", err
	}
	for _, p := range paths {
		if s, err := readLine(p, "serial"); err == nil && s == serial {
			return filepath.Join("/dev", filepath.Base(p)), nil
		}
	}
	return "", fmt.Errorf("no disk %q", serial)
}

// writeDisk overrides the guest kernel's own idea of a read-only disk, to see
// what the host makes of a write.
func writeDisk(serial string, data []byte) error {
	path, err := findDisk(serial)
	if err != nil {
		return err
	}
	if f, err := os.Open(path); err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 0)
		_ = f.Close()
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Sync(), f.Close())
}

func readDisk(serial string, length int) ([]byte, error) {
	path, err := findDisk(serial)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, length)
	_, err = f.ReadAt(b, 0)
	return b, err
}

func flood(length int) error {
	line := []byte(strings.Repeat("x", 79) + "\n")
	for n := 0; n < length; n += len(line) {
		if _, err := os.Stdout.Write(line); err != nil && !errors.Is(err, syscall.EAGAIN) {
			return err
		}
	}
	return nil
}
