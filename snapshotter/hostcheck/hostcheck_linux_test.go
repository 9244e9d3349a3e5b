package hostcheck

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/snapshotter/daemon"
	"github.com/applevm/applevm/snapshotter/hostconfig"
)

// containerd answers what a test wants of containerd's version and
// introspection services.
type containerd struct {
	versionapi.UnimplementedVersionServer
	introspectionapi.UnimplementedIntrospectionServer
	version string
	plugins []*introspectionapi.Plugin
	runtime string // what the shim calls itself; empty is an error
	hang    bool   // does not answer at all
}

func (c *containerd) Version(ctx context.Context, _ *emptypb.Empty) (*versionapi.VersionResponse, error) {
	if c.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &versionapi.VersionResponse{Version: c.version}, nil
}

func (c *containerd) Plugins(context.Context, *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: c.plugins}, nil
}

func (c *containerd) PluginInfo(_ context.Context, req *introspectionapi.PluginInfoRequest) (*introspectionapi.PluginInfoResponse, error) {
	if c.runtime == "" || req.GetType() != "io.containerd.runtime.v2" || req.GetID() != "task" {
		return nil, status.Error(codes.Unknown, "failed to resolve runtime path: not installed\x1b[2J")
	}
	extra, err := anypb.New(&types.RuntimeInfo{Name: c.runtime, Version: &types.RuntimeVersion{Version: "v1"}})
	return &introspectionapi.PluginInfoResponse{Extra: extra}, err
}

// setup is a host that is ready, until a test changes it.
type setup struct {
	dir        string
	cfg        config.Config
	containerd *containerd
	noDaemon   bool
	sys        system
	timeout    time.Duration
}

func newSetup(t *testing.T) *setup {
	t.Helper()
	dir := shortdir.New(t)
	s := &setup{dir: dir, cfg: config.Default(), sys: thisSystem()}
	s.sys.viewed = func(string) bool { return true }
	s.sys.uid = 0
	s.cfg.Guest.Dir = filepath.Join(dir, "guest")
	s.cfg.QEMU.Binary = s.script(t, "qemu", "echo 'QEMU emulator version 9.9.9 (test)'; echo Copyright")
	s.cfg.Snapshotter.Root = filepath.Join(dir, "root")
	s.cfg.Snapshotter.Address = filepath.Join(dir, "run", "s.sock")
	s.cfg.Snapshotter.ContainerdAddress = filepath.Join(dir, "c.sock")
	s.image(t, runtime.GOARCH)
	proxy := func(typ, id string, capabilities ...string) *introspectionapi.Plugin {
		return &introspectionapi.Plugin{Type: typ, ID: id, Exports: map[string]string{"address": s.cfg.Snapshotter.Address}, Capabilities: capabilities}
	}
	s.containerd = &containerd{version: "v2.4.2", runtime: hostconfig.Runtime, plugins: []*introspectionapi.Plugin{
		{Type: "io.containerd.snapshotter.v1", ID: "overlayfs"},
		proxy("io.containerd.snapshotter.v1", hostconfig.Snapshotter, "rebase"),
		proxy("io.containerd.differ.v1", hostconfig.Differ),
	}}
	return s
}

// script makes a program.
func (s *setup) script(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// image makes a guest image.
func (s *setup) image(t *testing.T, arch string) {
	t.Helper()
	for name, content := range map[string]string{
		image.File: fmt.Sprintf(`{"arch":%q,"kernel":"k","initrd":"i","release":"6.1.0","kernel_kind":"own"}`, arch),
		"k":        "kernel", "i": "initramfs",
	} {
		path := filepath.Join(s.cfg.Guest.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// own gives one path to an owner, and all others to the user of containerd.
func (s *setup) own(path string, uid, user int) {
	s.sys.owner = func(p string) (int, error) {
		if p == path {
			return uid, nil
		}
		return user, nil
	}
}

// check starts containerd and the daemon and checks the host.
func (s *setup) check(t *testing.T) []Finding {
	t.Helper()
	if s.containerd != nil {
		l, err := net.Listen("unix", s.cfg.Snapshotter.ContainerdAddress)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		versionapi.RegisterVersionServer(server, s.containerd)
		introspectionapi.RegisterIntrospectionServer(server, s.containerd)
		go func() { _ = server.Serve(l) }()
		t.Cleanup(server.Stop)
	}
	if !s.noDaemon {
		s.startDaemon(t)
	}
	var found []Finding
	err := run(t.Context(), s.cfg, s.sys, s.timeout, func(f Finding) { found = append(found, f) })
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func (s *setup) startDaemon(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- daemon.Run(ctx, s.cfg.Snapshotter, sync.OnceFunc(func() { close(ready) })) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
}

// TestReadyHost checks a host that has all.
func TestReadyHost(t *testing.T) {
	s := newSetup(t)
	s.sys.kvm = "/dev/null" // whatever the test's own host has
	found := s.check(t)
	want := []string{
		"guest image: " + s.cfg.Guest.Dir + " for " + runtime.GOARCH + ", Linux 6.1.0 (kernel: own)",
		"guest kernel: ", "guest initramfs: ", "QEMU: " + s.cfg.QEMU.Binary + ", version 9.9.9 (test)", "accelerator: ",
		"root directory: " + s.cfg.Snapshotter.Root + " is writable", "socket directory: ", "snapshotter socket: ", "containerd socket: ",
		"snapshotter daemon: answers at " + s.cfg.Snapshotter.Address, "containerd: v2.4.2 at ",
		"proxy plugin io.containerd.snapshotter.v1.applevm: dials ", "proxy plugin io.containerd.differ.v1.applevm-diff: dials ",
		"shim: containerd runs io.containerd.applevm.v1, version v1", "view: clients that mount",
	}
	if len(found) != len(want) {
		t.Fatalf("%d findings, want %d: %v", len(found), len(want), found)
	}
	for i, f := range found {
		level := OK
		if want[i] == "accelerator: " {
			level = Warn
		}
		if f.Level != level || !strings.HasPrefix(f.What, want[i]) {
			t.Errorf("finding %d is %v, want %v with %q", i, f, level, want[i])
		}
	}
}

// TestFindings breaks one thing after the other.
func TestFindings(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, s *setup)
		level  Level
		what   string // begins with it
		has    string // the finding or its remedy have it
	}{
		{"no guest image", func(_ *testing.T, s *setup) { s.cfg.Guest.Dir += "/none" }, Fail, "guest image: there is none in ", "make guest"},
		{"guest image of another architecture", func(t *testing.T, s *setup) {
			s.image(t, map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH])
		}, Fail, "guest image: ", "but the machine is"},
		{"no kernel", func(_ *testing.T, s *setup) { os.Remove(filepath.Join(s.cfg.Guest.Dir, "k")) }, Fail, "guest image: ", "lacks its kernel"},
		{"damaged description", func(t *testing.T, s *setup) { s.image(t, "\x00") }, Fail, "guest image: ", "invalid guest image"},
		{"another driver", func(_ *testing.T, s *setup) { s.cfg.Machine.Driver = "vz" }, Fail, "virtual machine monitor: ", `machine.driver = "qemu"`},
		{"no such QEMU", func(_ *testing.T, s *setup) { s.cfg.QEMU.Binary = s.dir + "/none" }, Fail, "QEMU: qemu.binary ", "no such file"},
		{"QEMU not in PATH", func(t *testing.T, s *setup) { s.cfg.QEMU.Binary = ""; t.Setenv("PATH", s.dir) }, Fail, "QEMU: qemu-system-", "apt install qemu-system"},
		{"another program", func(t *testing.T, s *setup) { s.script(t, "qemu", "echo hello") }, Fail, "QEMU: ", `"hello"`},
		{"a QEMU that fails", func(t *testing.T, s *setup) { s.script(t, "qemu", "exit 3") }, Fail, "QEMU: ", "exit status 3"},
		{"a QEMU that hangs", func(t *testing.T, s *setup) { s.script(t, "qemu", "exec sleep 600"); s.timeout = time.Second }, Fail, "QEMU: ", "no answer in time"},
		{"emulation is asked for", func(_ *testing.T, s *setup) { s.cfg.QEMU.Accel = "tcg" }, Warn, `accelerator: qemu.accel is "tcg"`, "several times slower"},
		{"no KVM", func(_ *testing.T, s *setup) { s.sys.kvm = s.dir + "/none" }, Warn, "accelerator: ", "emulated (TCG)"},
		{"no KVM, but asked for", func(_ *testing.T, s *setup) { s.sys.kvm = s.dir + "/none"; s.cfg.QEMU.Accel = "kvm" }, Fail, "accelerator: ", `qemu.accel = "auto"`},
		{"a device that is not KVM", func(_ *testing.T, s *setup) { s.sys.kvm = "/dev/null" }, Warn, "accelerator: /dev/null: inappropriate ioctl", "dmesg"},
		{"macOS's accelerator", func(_ *testing.T, s *setup) { s.cfg.QEMU.Accel = "hvf" }, Fail, "accelerator: ", "hvf"},
		{"root is a file", func(t *testing.T, s *setup) { s.cfg.Snapshotter.Root = s.script(t, "file", ""); s.noDaemon = true }, Fail, "root directory: ", "not a directory"},
		{"root below a file", func(t *testing.T, s *setup) {
			s.cfg.Snapshotter.Root = s.script(t, "file", "") + "/a/b"
			s.noDaemon = true
		}, Fail, "root directory: ", "not a directory"},
		{"root does not exist", func(_ *testing.T, s *setup) { s.cfg.Snapshotter.Root += "/a/b"; s.noDaemon = true }, OK, "root directory: ", "will be made"},
		{"cache below a file", func(t *testing.T, s *setup) { s.cfg.QEMU.CacheDir = s.script(t, "file", "") + "/a" }, Fail, "cache directory: ", "qemu.cache_dir"},
		{"no cache yet", func(_ *testing.T, s *setup) { s.cfg.QEMU.CacheDir = s.dir + "/cache" }, OK, "cache directory: ", "will be made"},
		{"long socket path", func(_ *testing.T, s *setup) { s.cfg.Snapshotter.Address = pathOf(s.dir, 104); s.noDaemon = true }, Fail, "snapshotter socket: ", "104 bytes, a unix socket has room for 103"},
		{"longest socket path", func(_ *testing.T, s *setup) { s.cfg.Snapshotter.Address = pathOf(s.dir, 103); s.noDaemon = true }, OK, "snapshotter socket: ", ""},
		{"long socket directory", func(_ *testing.T, s *setup) { s.cfg.Snapshotter.Address = pathOf(s.dir, 100) + "/s"; s.noDaemon = true }, Fail, "snapshotter socket: ", "needs a path of 115 bytes"},
		{"long containerd socket", func(_ *testing.T, s *setup) {
			s.cfg.Snapshotter.ContainerdAddress = pathOf(s.dir, 105)
			s.containerd = nil
		}, Fail, "containerd socket: ", "snapshotter.containerd_address"},
		{"no daemon", func(_ *testing.T, s *setup) { s.noDaemon = true }, Fail, "snapshotter daemon: nobody answers at ", "start applevm-snapshotter"},
		{"another server on the daemon's socket", func(_ *testing.T, s *setup) {
			s.noDaemon, s.cfg.Snapshotter.Address = true, s.cfg.Snapshotter.ContainerdAddress
		}, Fail, "snapshotter daemon: ", "unknown service"},
		{"a daemon that hangs", func(t *testing.T, s *setup) {
			s.noDaemon, s.timeout = true, time.Second
			silent(t, s.cfg.Snapshotter.Address)
		}, Fail, "snapshotter daemon: ", "no answer in time"},
		{"no containerd", func(_ *testing.T, s *setup) { s.containerd = nil }, Fail, "containerd: nobody answers at ", "start containerd"},
		{"dead containerd", func(t *testing.T, s *setup) {
			s.containerd = nil
			l := silent(t, s.cfg.Snapshotter.ContainerdAddress)
			l.SetUnlinkOnClose(false)
			_ = l.Close()
		}, Fail, "containerd: nobody answers at ", "connection refused"},
		{"a containerd that hangs", func(_ *testing.T, s *setup) { s.containerd.hang, s.timeout = true, time.Second }, Fail, "containerd: ", "no answer in time"},
		{"a containerd that is mute", func(t *testing.T, s *setup) {
			s.containerd, s.timeout = nil, time.Second
			silent(t, s.cfg.Snapshotter.ContainerdAddress)
		}, Fail, "containerd: ", "no answer in time"},
		{"old containerd", func(_ *testing.T, s *setup) { s.containerd.version = "v2.3.3" }, Fail, "containerd: v2.3.3 at ", "2.3.4 or newer"},
		{"no snapshotter plugin", func(_ *testing.T, s *setup) { s.containerd.plugins[1].ID = "other" }, Fail, "proxy plugin io.containerd.snapshotter.v1.applevm: containerd has none", "config containerd"},
		{"no diff plugin", func(_ *testing.T, s *setup) { s.containerd.plugins[2].Type = "other" }, Fail, "proxy plugin io.containerd.differ.v1.applevm-diff: containerd has none", "config containerd"},
		{"plugin that failed", func(_ *testing.T, s *setup) {
			s.containerd.plugins[2].InitErr = status.New(codes.Unknown, "bad luck").Proto()
		}, Fail, "proxy plugin io.containerd.differ.v1.applevm-diff: ", "bad luck"},
		{"plugin of another socket", func(_ *testing.T, s *setup) { s.containerd.plugins[1].Exports["address"] = "/else" }, Fail, "proxy plugin io.containerd.snapshotter.v1.applevm: ", `dials "/else"`},
		{"plugin by a symlink", func(t *testing.T, s *setup) {
			if err := os.Symlink(filepath.Dir(s.cfg.Snapshotter.Address), s.dir+"/link"); err != nil {
				t.Fatal(err)
			}
			s.containerd.plugins[1].Exports["address"] = s.dir + "/link/s.sock"
		}, OK, "proxy plugin io.containerd.snapshotter.v1.applevm: ", ""},
		{"plugin without rebase", func(_ *testing.T, s *setup) { s.containerd.plugins[1].Capabilities = nil }, Warn, "proxy plugin io.containerd.snapshotter.v1.applevm: ", "one after the other"},
		{"no shim", func(_ *testing.T, s *setup) { s.containerd.runtime = "" }, Fail, "shim: containerd cannot run ", "containerd's PATH"},
		{"another shim", func(_ *testing.T, s *setup) { s.containerd.runtime = "io.containerd.runc.v2" }, Fail, "shim: ", `"io.containerd.runc.v2"`},
		{"shim in PATH, no containerd", func(t *testing.T, s *setup) {
			s.containerd = nil
			s.script(t, shimBinary, "")
			t.Setenv("PATH", s.dir)
		}, OK, "shim: ", "containerd was not asked"},
		{"no view", func(_ *testing.T, s *setup) { s.sys.viewed = func(string) bool { return false } }, Warn, "view: nobody serves it for ", "applevm-view"},
		{"directory of another user's", func(_ *testing.T, s *setup) { s.own(s.cfg.Snapshotter.Root, 5, 7) }, Fail, "owner: ", "belongs to uid 5, not to uid 7, the user of "},
		{"socket's directory of another user's", func(_ *testing.T, s *setup) { s.own(filepath.Dir(s.cfg.Snapshotter.Address), 0, 7) }, Fail, "owner: ", "sudo chown -R 7 "},
		{"no shim in PATH, no containerd", func(t *testing.T, s *setup) { s.containerd = nil; t.Setenv("PATH", s.dir) }, Fail, "shim: ", "not in PATH"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSetup(t)
			s.timeout = 30 * time.Second
			tt.change(t, s)
			var match []Finding
			found := s.check(t)
			for _, f := range found {
				if strings.HasPrefix(f.What, tt.what) {
					match = append(match, f)
				}
				if (f.Level == OK) != (f.Remedy == "") {
					t.Errorf("%v: only what is not well has a remedy, and all of it", f)
				}
			}
			if len(match) != 1 || match[0].Level != tt.level || !strings.Contains(match[0].What+match[0].Remedy, tt.has) {
				t.Errorf("got %v, want one %v with %q and %q", match, tt.level, tt.what, tt.has)
				for _, f := range found {
					t.Log(f.Level, f.What, f.Remedy)
				}
			}
		})
	}
}

// pathOf returns a path of so many bytes below dir.
func pathOf(dir string, length int) string {
	return dir + "/" + strings.Repeat("p", length-len(dir)-1)
}

// silent accepts connections and says nothing.
func silent(t *testing.T, socket string) *net.UnixListener {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestVersions(t *testing.T) {
	for version, want := range map[string]Level{
		"v2.3.4": OK, "2.3.4": OK, "2.4.2+unknown": OK, "v2.10.0": OK, "v3.0.0-beta.1": OK, "v2.3.5-rc.1": OK, "v2.3.4-12-gabcdef.m": OK,
		"v99999999999999999999.0.0": OK,
		"v2.3.3":                    Fail, "v2.3.4-rc.1": Fail, "v2.3.4-beta.0": Fail, "1.7.27": Fail, "v2.0.0": Fail,
		"": Warn, "unknown": Warn, "2.4": Warn,
	} {
		if f := judgeVersion("/c.sock", version); f.Level != want {
			t.Errorf("version %q: %v, want %v", version, f, want)
		}
	}
}

// TestProbeThatNeverReturns must not keep the others from running.
func TestProbeThatNeverReturns(t *testing.T) {
	forever := make(chan struct{})
	defer close(forever)
	p := probe{"a dead disk", func(context.Context) []Finding { <-forever; return nil }}
	f := p.within(t.Context(), time.Millisecond)
	if len(f) != 1 || f[0].Level != Fail || !strings.Contains(f[0].What, "a dead disk: no answer within") {
		t.Errorf("got %v", f)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, config.Default(), Options{}, func(Finding) {}); err == nil {
		t.Error("no error")
	}
}

func TestReason(t *testing.T) {
	_, err := os.Open("/no/such")
	for _, tt := range []struct {
		err  error
		want string
	}{
		{err, syscall.ENOENT.Error()},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), "no answer in time"},
		{fmt.Errorf("x"), "x"},
	} {
		if got := reason(tt.err); got != tt.want {
			t.Errorf("reason(%v) = %q, want %q", tt.err, got, tt.want)
		}
	}
}
