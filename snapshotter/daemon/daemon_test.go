package daemon

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
)

// containerd is a gRPC server of a content store that remembers with what
// namespace and lease it was called.
type containerd struct {
	store   content.Store
	mu      sync.Mutex
	callers map[string]bool
}

func startContainerd(t *testing.T, socket string) *containerd {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &containerd{store: store, callers: make(map[string]bool)}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			c.note(ctx)
			return h(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			c.note(s.Context())
			return h(srv, s)
		}))
	contentapi.RegisterContentServer(server, contentserver.New(store))
	go func() {
		if err := server.Serve(l); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(server.Stop)
	return c
}

func (c *containerd) note(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.callers[strings.Join(md[namespaces.GRPCHeader], ",")+"/"+strings.Join(md[leases.GRPCHeader], ",")] = true
}

// startDaemon runs a daemon until the test ends or stop is called, which
// returns Run's error.
func startDaemon(t *testing.T, cfg config.Snapshotter) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Run(ctx, cfg, func() { close(ready) }) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return stop
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func applier(conn *grpc.ClientConn) diff.Applier {
	return diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Applier)
}

func testConfig(t *testing.T) config.Snapshotter {
	dir := shortdir.New(t)
	return config.Snapshotter{
		Root:              filepath.Join(dir, "root"),
		Address:           filepath.Join(dir, "run", "s.sock"),
		ContainerdAddress: filepath.Join(dir, "c.sock"),
		WritableSizeGiB:   1,
	}
}

// TestEndToEnd unpacks a layer and prepares a container through gRPC, as
// containerd does.
func TestEndToEnd(t *testing.T) {
	cfg := testConfig(t)
	c := startContainerd(t, cfg.ContainerdAddress)
	stop := startDaemon(t, cfg)
	conn := dial(t, cfg.Address)
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "applevm")
	diffs := applier(conn)

	plain := tartest.Tar(t, tartest.Dir("etc"), tartest.File("etc/passwd", "app"), tartest.File("big", strings.Repeat("data", 1<<20)))
	blob := tartest.Gzip(t, plain)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(t.Context(), c.store, "l", bytes.NewReader(blob), desc); err != nil {
		t.Fatal(err)
	}

	ctx := leases.WithLease(namespaces.WithNamespace(t.Context(), "tenant"), "lease-1")
	const key = "tenant/1/extract-1-a sha256:x"
	mounts, err := sn.Prepare(ctx, key, "")
	if err != nil {
		t.Fatal(err)
	}
	applied, err := diffs.Apply(ctx, desc, mounts)
	if err != nil {
		t.Fatal(err)
	}
	if applied.Digest != digest.FromBytes(plain) || applied.Size != int64(len(plain)) {
		t.Errorf("applied %+v", applied)
	}
	if err := sn.Commit(ctx, "img", key); err != nil {
		t.Fatal(err)
	}
	if mounts, err = sn.Prepare(ctx, "tenant/2/c", "img"); err != nil {
		t.Fatal(err)
	}
	if m, err := manifest.Find(mounts[0].Source); err != nil || len(m.Layers) != 1 || m.Writable == nil {
		t.Errorf("manifest %+v, %v", m, err)
	}
	c.mu.Lock()
	if len(c.callers) != 1 || !c.callers["tenant/lease-1"] {
		t.Errorf("the content store was called as %v, want tenant/lease-1 only", c.callers)
	}
	c.mu.Unlock()

	// Errors keep their kind on the way.
	if _, err := sn.Prepare(ctx, "tenant/2/c", "img"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Prepare again = %v, want ErrAlreadyExists", err)
	}
	if _, err := diffs.Apply(ctx, desc, []mount.Mount{{Type: "bind", Source: "/tmp"}}); !errdefs.IsNotImplemented(err) {
		t.Errorf("Apply elsewhere = %v, want ErrNotImplemented", err)
	}
	cut := blob[:len(blob)/2]
	bad := ocispec.Descriptor{MediaType: desc.MediaType, Digest: digest.FromBytes(cut), Size: int64(len(cut))}
	if err := content.WriteBlob(t.Context(), c.store, "bad", bytes.NewReader(cut), bad); err != nil {
		t.Fatal(err)
	}
	if mounts, err = sn.Prepare(ctx, key, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := diffs.Apply(ctx, bad, mounts); !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "truncated") {
		t.Errorf("Apply of a truncated layer = %v, want ErrInvalidArgument in one line", err)
	}
	if err := sn.Remove(ctx, "img"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Remove of a parent = %v, want ErrFailedPrecondition", err)
	}
	if err := sn.(snapshots.Cleaner).Cleanup(ctx); err != nil {
		t.Error(err)
	}

	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if _, err := os.Lstat(cfg.Address); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	startDaemon(t, cfg) // and it can start again
}

func TestApplyWithoutContainerd(t *testing.T) {
	cfg := testConfig(t)
	startDaemon(t, cfg)
	conn := dial(t, cfg.Address)
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "applevm")
	mounts, err := sn.Prepare(t.Context(), "extract-1", "")
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("x"), Size: 1}
	_, err = applier(conn).Apply(t.Context(), desc, mounts)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), cfg.ContainerdAddress) || !strings.Contains(err.Error(), desc.Digest.String()) {
		t.Errorf("Apply = %v, want ErrUnavailable with containerd's socket and the layer", err)
	}
}

func TestListen(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, path string)
		want string
	}{
		{"nothing there", func(*testing.T, string) {}, ""},
		{"a dead socket", func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			l.Close()
		}, ""},
		{"a living socket", func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, "another process serves"},
		{"a file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a socket"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(shortdir.New(t), "s")
			tt.make(t, path)
			l, err := listen(path)
			if tt.want != "" {
				if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("listen = %v, want ErrUnavailable, %q and the path", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			st, err := os.Lstat(path)
			if err != nil || st.Mode() != os.ModeSocket|0o600 {
				t.Errorf("socket's mode %v, %v, want 0600", st.Mode(), err)
			}
			conn, err := net.DialTimeout("unix", path, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
				t.Errorf("left beside the socket: %v", entries)
			}
		})
	}
}

func TestRunRefusesASecondDaemon(t *testing.T) {
	cfg := testConfig(t)
	startDaemon(t, cfg)
	other := cfg
	other.Address += "2"
	if err := Run(t.Context(), other, nil); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), cfg.Root) {
		t.Errorf("second daemon on the root: %v", err)
	}
	other = cfg
	other.Root += "2"
	if err := Run(t.Context(), other, nil); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), cfg.Address) {
		t.Errorf("second daemon on the socket: %v", err)
	}
	if _, err := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(dial(t, cfg.Address)), "a").Prepare(t.Context(), "c", ""); err != nil {
		t.Errorf("the first one serves no more: %v", err)
	}
}
