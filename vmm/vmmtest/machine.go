package vmmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

const (
	bigTransfer = 8 << 20 // hashing is slow under emulation
	manyStreams = 120
	consoleSize = 64 << 10
)

// testMachine checks on one guest all that a guest survives, and its Stop.
func (s *Suite) testMachine(t *testing.T, img image.Image) {
	d := s.Driver(t)
	cfg := config(t, img)
	disks := makeDisks(t)
	cfg.Disks = []vmm.Disk{
		{ID: "layer-0123456789abcd", Path: disks.ro, ReadOnly: true},
		{ID: "rw", Path: disks.rw},
	}
	cables, nics := makeNICs(t)
	cfg.NICs = nics
	g := Boot(t, d, cfg)
	if g.PID() == 0 {
		t.Error("no PID")
	}
	t.Run("Echo", func(t *testing.T) { testEcho(t, g) })
	t.Run("Refused", func(t *testing.T) { testRefused(t, g) })
	t.Run("Listen", func(t *testing.T) { testListen(t, g) })
	t.Run("ListenerClosed", func(t *testing.T) { testListenerClosed(t, g) })
	t.Run("BigToGuest", func(t *testing.T) { testBigToGuest(t, g) })
	t.Run("BigFromGuest", func(t *testing.T) { testBigFromGuest(t, g) })
	t.Run("BothWaysAtOnce", func(t *testing.T) { testBothWays(t, g) })
	if s.HalfClose {
		t.Run("HalfClose", func(t *testing.T) { testHalfClose(t, g) })
	}
	t.Run("ClosedByGuest", func(t *testing.T) { testClosedByGuest(t, g) })
	t.Run("ManyStreams", func(t *testing.T) { testManyStreams(t, g) })
	t.Run("ManyShortStreams", func(t *testing.T) { testShortStreams(t, g) })
	t.Run("SlowGuestReader", func(t *testing.T) { testSlowGuest(t, g) })
	t.Run("SlowHostReader", func(t *testing.T) { testSlowHost(t, g) })
	t.Run("Deadline", func(t *testing.T) { testDeadline(t, g) })
	t.Run("CloseUnblocks", func(t *testing.T) { testCloseUnblocks(t, g) })
	t.Run("Disks", func(t *testing.T) { testDisks(t, g, disks) })
	t.Run("DiskInUse", func(t *testing.T) { s.testDiskInUse(t, img, disks) })
	t.Run("NICs", func(t *testing.T) { testNICs(t, g, cables, nics) })
	t.Run("PauseResume", func(t *testing.T) { testPause(t, g) })
	t.Run("Console", func(t *testing.T) { testConsole(t, g) })
	t.Run("StartTwice", func(t *testing.T) {
		if err := g.Start(timeout(t)); err == nil {
			t.Error("a second Start succeeded")
		}
	})
	t.Run("Stop", func(t *testing.T) { testStop(t, g, disks) })
}

func dial(t testing.TB, g *Guest, port uint32) net.Conn {
	t.Helper()
	c, err := g.Dial(timeout(t), port)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(testTimeout))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// checkEcho sends size bytes through c, which echoes, and compares.
func checkEcho(c net.Conn, size int) error {
	sent := make([]byte, size)
	proto.Pattern(sent, int64(size))
	failed := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		failed <- err
	}()
	got := make([]byte, size)
	if n, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, size, err)
	}
	if err := <-failed; err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errors.New("the echo differs from what was sent")
	}
	return nil
}

func testEcho(t *testing.T, g *Guest) {
	for _, size := range []int{1, 2, 4051, 4052, 4053, 4096, 65535, 65536, 65537, 1 << 20} {
		c := dial(t, g, proto.EchoPort)
		if err := checkEcho(c, size); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func testRefused(t *testing.T, g *Guest) {
	if _, err := g.Dial(timeout(t), proto.NobodyPort); !errors.Is(err, vmm.ErrRefused) {
		t.Errorf("Dial to a port without a listener: %v", err)
	}
	_, err := g.Call(timeout(t), proto.Request{Op: proto.OpDial, Port: 9999})
	if err == nil || !strings.Contains(err.Error(), "the guest says") {
		t.Errorf("the guest's dial to a port without a listener: %v", err)
	}
}

func testListen(t *testing.T, g *Guest) {
	const port = 3100
	l, err := g.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 5 {
		if _, err := g.Call(timeout(t), proto.Request{Op: proto.OpDial, Port: port}); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(testTimeout))
		if err := checkEcho(c, 300<<10); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	}
}

func testListenerClosed(t *testing.T, g *Guest) {
	const port = 3101
	l, err := g.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept on a closed listener: %v", err)
	}
	if _, err := g.Call(timeout(t), proto.Request{Op: proto.OpDial, Port: port}); err == nil {
		t.Error("the guest reached a closed listener")
	}
	again, err := g.Listen(port)
	if err != nil {
		t.Fatalf("the port is not free again: %v", err)
	}
	_ = again.Close()
}

func testBigToGuest(t *testing.T, g *Guest) {
	if err := sendHashed(dial(t, g, proto.SinkPort), bigTransfer); err != nil {
		t.Error(err)
	}
}

// sendHashed sends length bytes to the sink and compares the digests.
func sendHashed(c net.Conn, length int64) error {
	if err := binary.Write(c, binary.BigEndian, proto.SinkRequest{Length: length, Hash: true}); err != nil {
		return err
	}
	h := sha256.New()
	block := make([]byte, 100_000) // no multiple of anything
	for at := int64(0); at < length; at += int64(len(block)) {
		b := block[:min(int64(len(block)), length-at)]
		proto.Pattern(b, at)
		h.Write(b)
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
	var sum proto.Sum
	if err := json.NewDecoder(c).Decode(&sum); err != nil {
		return err
	}
	if sum.Bytes != length || !bytes.Equal(sum.SHA256, h.Sum(nil)) {
		return fmt.Errorf("the guest got %d of %d bytes, or others than were sent", sum.Bytes, length)
	}
	return nil
}

// receiveChecked asks the source for length bytes and compares them.
func receiveChecked(c net.Conn, length int64) error {
	if err := binary.Write(c, binary.BigEndian, length); err != nil {
		return err
	}
	return checkSource(c, length)
}

func checkSource(r io.Reader, length int64) error {
	want := make([]byte, 256<<10) // the source repeats this
	proto.Pattern(want, 0)
	got := make([]byte, len(want))
	for at := int64(0); at < length; at += int64(len(got)) {
		got = got[:min(int64(len(got)), length-at)]
		if n, err := io.ReadFull(r, got); err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", at+int64(n), length, err)
		}
		if !bytes.Equal(got, want[:len(got)]) {
			return fmt.Errorf("wrong bytes after %d", at)
		}
	}
	return nil
}

func testBigFromGuest(t *testing.T, g *Guest) {
	if err := receiveChecked(dial(t, g, proto.SourcePort), bigTransfer); err != nil {
		t.Error(err)
	}
}

func testBothWays(t *testing.T, g *Guest) {
	in, out, echo := dial(t, g, proto.SourcePort), dial(t, g, proto.SinkPort), dial(t, g, proto.EchoPort)
	var errs [3]error
	var wg sync.WaitGroup
	wg.Go(func() { errs[0] = receiveChecked(in, 4<<20) })
	wg.Go(func() { errs[1] = sendHashed(out, 4<<20) })
	wg.Go(func() { errs[2] = checkEcho(echo, 4<<20) })
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Error(err)
	}
}

func testHalfClose(t *testing.T, g *Guest) {
	c := dial(t, g, proto.EchoPort)
	sent := make([]byte, 200_000)
	proto.Pattern(sent, 1)
	go func() {
		_, _ = c.Write(sent)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(c) // ends only if the guest saw our end
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(sent), err)
	}
	if _, err := c.Write([]byte{1}); err == nil {
		t.Error("Write after CloseWrite succeeded")
	}
}

func testClosedByGuest(t *testing.T, g *Guest) {
	c := dial(t, g, proto.DropPort)
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("Read from a closed stream: %d, %v", n, err)
	}
	var err error
	for err == nil {
		_, err = c.Write(make([]byte, 1000))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("Write to a closed stream waits")
	}
}

func testManyStreams(t *testing.T, g *Guest) {
	// All are open before the first is used.
	conns := make([]net.Conn, manyStreams)
	for i := range conns {
		conns[i] = dial(t, g, proto.EchoPort)
	}
	errs := make([]error, len(conns))
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() { errs[i] = checkEcho(c, 10_000+1000*i) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func testShortStreams(t *testing.T, g *Guest) {
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for range 50 {
				c, err := g.Dial(t.Context(), proto.EchoPort)
				if err == nil {
					_ = c.SetDeadline(time.Now().Add(testTimeout))
					err = errors.Join(checkEcho(c, 100), c.Close())
				}
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

// testSlowGuest fills a stream whose guest end nobody reads.
func testSlowGuest(t *testing.T, g *Guest) {
	held := dial(t, g, proto.HoldPort)
	_ = held.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := held.Write(make([]byte, 16<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes went into a stream that nobody reads: %v", n, err)
	}
	if err := checkEcho(dial(t, g, proto.EchoPort), 2<<20); err != nil {
		t.Errorf("another stream: %v", err)
	}
}

// testSlowHost leaves a stream from the guest unread for a while.
func testSlowHost(t *testing.T, g *Guest) {
	const length = 4 << 20
	slow := dial(t, g, proto.SourcePort)
	if err := binary.Write(slow, binary.BigEndian, int64(length)); err != nil {
		t.Fatal(err)
	}
	if err := checkEcho(dial(t, g, proto.EchoPort), 2<<20); err != nil {
		t.Errorf("another stream: %v", err)
	}
	if err := receiveChecked(dial(t, g, proto.SourcePort), 2<<20); err != nil {
		t.Errorf("another stream: %v", err)
	}
	if err := checkSource(slow, length); err != nil {
		t.Errorf("the slow stream: %v", err)
	}
}

func testDeadline(t *testing.T, g *Guest) {
	c := dial(t, g, proto.EchoPort)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read past its deadline: %v", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(testTimeout))
	if err := checkEcho(c, 5000); err != nil {
		t.Errorf("after a deadline was moved: %v", err)
	}
}

func testCloseUnblocks(t *testing.T, g *Guest) {
	c := dial(t, g, proto.EchoPort)
	result := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		result <- err
	}()
	_ = c.Close()
	select {
	case err := <-result:
		if err == nil {
			t.Error("Read on a closed connection succeeded")
		}
	case <-time.After(testTimeout):
		t.Error("Close does not end a Read")
	}
}

type diskFiles struct{ ro, rw string }

const (
	roSize = 3 << 20
	rwSize = 5 << 20
)

func makeDisks(t *testing.T) diskFiles {
	t.Helper()
	dir := t.TempDir()
	// A comma in a path is a separator to QEMU.
	d := diskFiles{filepath.Join(dir, "a,b.img"), filepath.Join(dir, "rw.img")}
	content := make([]byte, roSize)
	proto.Pattern(content, 7)
	if err := errors.Join(os.WriteFile(d.ro, content, 0o600), os.WriteFile(d.rw, make([]byte, rwSize), 0o600)); err != nil {
		t.Fatal(err)
	}
	return d
}

func testDisks(t *testing.T, g *Guest, files diskFiles) {
	resp, err := g.Call(timeout(t), proto.Request{Op: proto.OpDisks})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]proto.Disk{
		"layer-0123456789abcd": {Serial: "layer-0123456789abcd", Size: roSize, ReadOnly: true},
		"rw":                   {Serial: "rw", Size: rwSize},
	}
	for _, d := range resp.Disks {
		if want[d.Serial] != d {
			t.Errorf("the guest has disk %+v", d)
		}
		delete(want, d.Serial)
	}
	if len(want) > 0 {
		t.Errorf("the guest lacks %v", want)
	}
	expected := make([]byte, 4096)
	proto.Pattern(expected, 7)
	resp, err = g.Call(timeout(t), proto.Request{Op: proto.OpRead, Disk: "layer-0123456789abcd", Length: len(expected)})
	if err != nil || !bytes.Equal(resp.Data, expected) {
		t.Errorf("the read-only disk has other content, %v", err)
	}
	// Whatever the guest tries, the file stays as it is.
	_, err = g.Call(timeout(t), proto.Request{Op: proto.OpWrite, Disk: "layer-0123456789abcd", Data: []byte("overwritten")})
	if err == nil {
		t.Error("the guest could write to a read-only disk")
	}
	if b, err := os.ReadFile(files.ro); err != nil || !bytes.Equal(b[:len(expected)], expected) {
		t.Errorf("the read-only disk was changed, %v", err)
	}
	// Flushed data is in the file while the machine still runs.
	if _, err := g.Call(timeout(t), proto.Request{Op: proto.OpWrite, Disk: "rw", Data: []byte("from the guest")}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(files.rw); err != nil || !bytes.HasPrefix(b, []byte("from the guest")) {
		t.Errorf("what the guest flushed is not in the file, %v", err)
	}
}

// testDiskInUse starts a second machine on the same disks.
func (s *Suite) testDiskInUse(t *testing.T, img image.Image, files diskFiles) {
	start := func(disk vmm.Disk) error {
		cfg := config(t, img)
		cfg.Disks = []vmm.Disk{disk}
		m, err := s.Driver(t).New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		err = m.Start(timeout(t))
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
		_ = ended(t, m)
		return err
	}
	if err := start(vmm.Disk{ID: "rw", Path: files.rw}); err == nil {
		t.Error("two machines have the same writable disk")
	} else if !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), files.rw) {
		t.Errorf("the error does not say that %s is in use: %v", files.rw, err)
	}
	if err := start(vmm.Disk{ID: "ro", Path: files.ro, ReadOnly: true}); err != nil {
		t.Errorf("two machines with the same read-only disk: %v", err)
	}
}

func testPause(t *testing.T, g *Guest) {
	c := dial(t, g, proto.EchoPort)
	for range 3 {
		if err := g.Pause(timeout(t)); err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		go func() { // it may wait for the guest
			_, err := c.Write([]byte("p"))
			written <- err
		}()
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a paused guest answers: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := g.Dial(short, proto.EchoPort); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial to a paused guest: %v", err)
		}
		cancel()
		if err := g.Resume(timeout(t)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(testTimeout))
		if err := <-written; err != nil {
			t.Fatalf("Write to a paused guest: %v", err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("the stream did not survive a pause: %v", err)
		}
		if err := checkEcho(c, 1<<20); err != nil {
			t.Fatalf("the stream did not survive a pause: %v", err)
		}
	}
}

func testConsole(t *testing.T, g *Guest) {
	if _, err := g.Call(timeout(t), proto.Request{Op: proto.OpFlood, Length: 150 << 10}); err != nil {
		t.Fatal(err)
	}
	if n := len(g.Console()); n > consoleSize || n < consoleSize/2 {
		t.Errorf("Console has %d bytes of the last %d", n, consoleSize)
	}
}

func testStop(t *testing.T, g *Guest, files diskFiles) {
	l, err := g.Listen(3102)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, g, proto.EchoPort)
	if _, err := g.Call(timeout(t), proto.Request{Op: proto.OpWrite, Disk: "rw", Data: []byte("at the end")}); err != nil {
		t.Fatal(err)
	}
	if err := g.Stop(timeout(t)); err != nil {
		t.Error(err)
	}
	select {
	case <-g.Done():
	default:
		t.Error("Stop returned before the end")
	}
	if err := g.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
	if alive(g.PID()) && g.PID() != os.Getpid() {
		t.Errorf("process %d is still there", g.PID())
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read after the end: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after the end: %v", err)
	}
	if _, err := g.Dial(timeout(t), proto.EchoPort); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("Dial after the end: %v", err)
	}
	if err := g.Resume(timeout(t)); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("Resume after the end: %v", err)
	}
	if err := errors.Join(g.Stop(timeout(t)), g.Kill()); err != nil {
		t.Errorf("Stop and Kill after the end: %v", err)
	}
	if b, err := os.ReadFile(files.rw); err != nil || !bytes.HasPrefix(b, []byte("at the end")) {
		t.Errorf("what the guest flushed is not in the file, %v", err)
	}
}
