package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	introspectionproxy "github.com/containerd/containerd/v2/core/introspection/proxy"
	"github.com/containerd/containerd/v2/plugins"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/applevm/applevm/snapshotter/hostconfig"
)

// minContainerd is the first containerd that tells a shim where its sockets go.
var minContainerd = [3]int{2, 3, 4}

const shimBinary = "containerd-shim-applevm-v1"

// dialGRPC returns a connection to a unix socket, which is made when it is
// first used.
func dialGRPC(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	return conn, nil
}

// dial tells why nobody answers at a socket. gRPC's errors bury that.
func dial(ctx context.Context, socket string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return conn.Close()
}

// grpcReason is the text of a call's error.
func grpcReason(err error) string {
	if status.Code(err) == codes.DeadlineExceeded {
		return "no answer in time"
	}
	return status.Convert(err).Message()
}

// checkDaemon asks the snapshotter's daemon for a snapshot that does not exist.
func (h *host) checkDaemon(ctx context.Context) []Finding {
	const what = "snapshotter daemon"
	address := h.cfg.Snapshotter.Address
	if err := dial(ctx, address); err != nil {
		remedy := "start applevm-snapshotter as the user that runs containerd, or set snapshotter.address to its socket"
		if errors.Is(err, fs.ErrPermission) {
			remedy = "run this as the user that runs applevm-snapshotter"
		}
		return []Finding{fail(remedy, "%s: nobody answers at %s: %s", what, address, reason(err))}
	}
	conn, err := dialGRPC(address)
	if err != nil {
		return []Finding{fail("set snapshotter.address to a path", "%s: %v", what, err)}
	}
	defer func() { _ = conn.Close() }()
	_, err = snapshotsapi.NewSnapshotsClient(conn).Stat(ctx, &snapshotsapi.StatSnapshotRequest{
		Snapshotter: hostconfig.Snapshotter, Key: "applevm-check/no-such-snapshot",
	})
	if err != nil && status.Code(err) != codes.NotFound {
		return []Finding{fail("restart applevm-snapshotter and look into its log", "%s: what serves %s is no working snapshotter: %s", what, address, grpcReason(err))}
	}
	return []Finding{ok("%s: answers at %s", what, address)}
}

// checkContainerd asks containerd for its version.
func (h *host) checkContainerd(ctx context.Context) []Finding {
	address := h.cfg.Snapshotter.ContainerdAddress
	if err := dial(ctx, address); err != nil {
		remedy := "start containerd, or set snapshotter.containerd_address to its socket"
		if errors.Is(err, fs.ErrPermission) {
			remedy = "run this as the user that runs containerd"
		}
		return []Finding{fail(remedy, "containerd: nobody answers at %s: %s", address, reason(err))}
	}
	resp, err := versionapi.NewVersionClient(h.containerd).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return []Finding{fail("restart containerd and look into its log", "containerd: %s does not tell its version: %s", address, grpcReason(err))}
	}
	h.answers.Store(true)
	return []Finding{judgeVersion(address, resp.GetVersion())}
}

var versionForm = regexp.MustCompile(`^v?(\d+)\.(\d+)\.(\d+)(-(?:alpha|beta|rc))?`)

// judgeVersion compares containerd's version with the least that works. A
// release candidate of that one is older.
func judgeVersion(address, version string) Finding {
	least := fmt.Sprintf("%d.%d.%d", minContainerd[0], minContainerd[1], minContainerd[2])
	remedy := "use containerd " + least + " or newer"
	m := versionForm.FindStringSubmatch(version)
	if m == nil {
		return warn(remedy, "containerd: %s answers with the version %q, which cannot be compared", address, version)
	}
	var have [3]int
	for i := range have {
		have[i], _ = strconv.Atoi(m[i+1]) // digits; what is too large becomes the largest int
	}
	order := slices.Compare(have[:], minContainerd[:])
	if order < 0 || order == 0 && m[4] != "" {
		return fail(remedy, "containerd: %s at %s is older than %s", version, address, least)
	}
	return ok("containerd: %s at %s", version, address)
}

// checkPlugins looks for applevm's proxy plugins in containerd.
func (h *host) checkPlugins(ctx context.Context) []Finding {
	if !h.answers.Load() {
		return nil // said already
	}
	resp, err := introspectionapi.NewIntrospectionClient(h.containerd).Plugins(ctx, &introspectionapi.PluginsRequest{})
	if err != nil {
		return []Finding{fail("look into containerd's log", "containerd's plugins: containerd does not list them: %s", grpcReason(err))}
	}
	return []Finding{
		h.judgePlugin(resp.GetPlugins(), string(plugins.SnapshotPlugin), hostconfig.Snapshotter),
		h.judgePlugin(resp.GetPlugins(), string(plugins.DiffPlugin), hostconfig.Differ),
	}
}

// judgePlugin looks at one plugin in the list of all.
func (h *host) judgePlugin(all []*introspectionapi.Plugin, typ, id string) Finding {
	const remedy = "put what `applevm-snapshotter config containerd` prints into containerd's configuration and restart it"
	name := typ + "." + id
	i := slices.IndexFunc(all, func(p *introspectionapi.Plugin) bool { return p.GetType() == typ && p.GetID() == id })
	if i < 0 {
		return fail(remedy, "proxy plugin %s: containerd has none", name)
	}
	p := all[i]
	if e := p.GetInitErr(); e != nil {
		return fail(remedy, "proxy plugin %s: containerd could not load it: %s", name, e.GetMessage())
	}
	address := h.cfg.Snapshotter.Address
	if dials := p.GetExports()["address"]; !sameFile(dials, address) {
		return fail(remedy, "proxy plugin %s: containerd dials %q, but snapshotter.address is %q", name, dials, address)
	}
	if id == hostconfig.Snapshotter && !slices.Contains(p.GetCapabilities(), "rebase") {
		return warn(remedy, `proxy plugin %s: it lacks the capability "rebase", so layers are unpacked one after the other`, name)
	}
	return ok("proxy plugin %s: dials %s", name, address)
}

// sameFile tells whether two paths name one file, through symlinks too.
func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(sa, sb)
}

// checkShim has containerd start the shim for its version: containerd's PATH
// counts and not this process's. Where containerd cannot be asked, this one's
// must do.
func (h *host) checkShim(ctx context.Context) []Finding {
	if !h.answers.Load() {
		path, err := exec.LookPath(shimBinary)
		if err != nil {
			return []Finding{fail("install it into a directory of containerd's PATH", "shim: %s is not in PATH", shimBinary)}
		}
		return []Finding{ok("shim: %s is in this user's PATH; containerd was not asked for its own", path)}
	}
	resp, err := introspectionproxy.NewIntrospectionProxy(h.containerd).PluginInfo(ctx, string(plugins.RuntimePluginV2), "task",
		&types.RuntimeRequest{RuntimePath: hostconfig.Runtime})
	if err != nil {
		why := err.Error()
		if ctx.Err() != nil {
			why = "no answer in time"
		}
		return []Finding{fail("install "+shimBinary+" into a directory of containerd's PATH, or beside the containerd binary",
			"shim: containerd cannot run %s: %s", hostconfig.Runtime, why)}
	}
	var info types.RuntimeInfo
	if err := resp.GetExtra().UnmarshalTo(&info); err != nil || info.GetName() != hostconfig.Runtime {
		return []Finding{fail("install "+shimBinary+" anew", "shim: what containerd runs for %s calls itself %q", hostconfig.Runtime, info.GetName())}
	}
	return []Finding{ok("shim: containerd runs %s, version %s", hostconfig.Runtime, info.GetVersion().GetVersion())}
}
