// Package bootstrap is what the shim binary does when containerd runs it: start
// a copy of itself that stays and serves, clean up after one that died, tell
// what the runtime is. containerd's pkg/shim speaks the protocol.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"

	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/shim/record"
	"github.com/applevm/applevm/shim/trace"
)

// Name is the runtime's name, from which containerd makes the binary's.
const Name = "io.containerd.applevm.v1"

// taskVersion is the version of containerd's task service that the shim speaks.
const taskVersion = 3

// Shim implements the interface of containerd's pkg/shim. Its zero value is
// ready for use.
type Shim struct{}

var _ shim.Shim = Shim{}

// Name returns the runtime's name.
func (Shim) Name() string { return Name }

// Start starts the process that serves the container, and tells where. The
// working directory is the bundle.
func (Shim) Start(ctx context.Context, params *bootapi.BootstrapParams) (_ *bootapi.BootstrapResult, err error) {
	began := time.Now()
	bundle, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	result := &bootapi.BootstrapResult{Version: taskVersion, Protocol: "ttrpc"}
	// Said here, it need not be asked for with -info, which costs a process.
	// What is named here the host is not to mount, the guest does: a bind of our
	// snapshotter's, and images with an overlay of them.
	if err := result.AddExtension(&types.MountCapabilities{
		Types: append([]string{"bind"}, plan.ImageMounts...), Transforms: plan.ImageTransforms,
	}); err != nil {
		return nil, err
	}
	if params.GetSocketDir() == "" {
		return nil, errors.New("containerd gives no directory for sockets: containerd 2.3.4 or newer is needed")
	}
	address, err := shim.CreateSocketAddress(ctx, params.GetSocketDir(), params.GetContainerdGrpcAddress(), params.GetInstanceID(), false)
	if err != nil {
		return nil, err
	}
	l, err := listen(address)
	if err != nil {
		return nil, fmt.Errorf("make the shim's socket: %w", err)
	}
	// The server has its own copy; closing this one must not remove the socket.
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	defer func() {
		if err != nil {
			_ = shim.RemoveSocket(address)
		}
	}()
	if err := record.SaveAddress(bundle, address); err != nil {
		return nil, err
	}
	socket, err := l.File()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	cmd, err := server(ctx, bundle, params)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(), trace.EnvExec+"="+strconv.FormatInt(began.UnixNano(), 10))
	cmd.ExtraFiles = []*os.File{socket} // descriptor 3, where pkg/shim expects it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the shim: %w", err)
	}
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("adjust the shim's OOM score: %w", err)
	}
	result.Address = address
	return result, nil
}

// listen makes the socket, over one that a dead shim has left.
func listen(address string) (*net.UnixListener, error) {
	l, err := shim.NewSocket(address)
	if err == nil || !shim.SocketEaddrinuse(err) {
		return l, err
	}
	if shim.CanConnect(address) {
		return nil, fmt.Errorf("a shim serves %s already", address)
	}
	if err := shim.RemoveSocket(address); err != nil {
		return nil, err
	}
	return shim.NewSocket(address)
}

// server is the command that serves the container, in a process group of its
// own so that signals to containerd's do not reach it.
func server(ctx context.Context, bundle string, params *bootapi.BootstrapParams) (*exec.Cmd, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-namespace", ns, "-id", params.GetInstanceID(), "-address", params.GetContainerdGrpcAddress())
	if params.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG {
		cmd.Args = append(cmd.Args, "-debug")
	}
	cmd.Dir = bundle
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd, nil
}

// Info tells what the runtime is.
func (Shim) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	info := &types.RuntimeInfo{Name: Name, Version: &types.RuntimeVersion{Version: "devel"}}
	if b, ok := debug.ReadBuildInfo(); ok {
		if b.Main.Version != "" {
			info.Version.Version = b.Main.Version
		}
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				info.Version.Revision = s.Value
			}
		}
	}
	return info, nil
}

// bundleOf finds the bundle of a delete command.
func bundleOf(ctx context.Context) (string, error) {
	if o, ok := ctx.Value(shim.OptsKey{}).(shim.Opts); ok && o.BundlePath != "" {
		return filepath.Abs(o.BundlePath)
	}
	return os.Getwd()
}
