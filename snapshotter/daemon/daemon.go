// Package daemon serves a snapshotter and its differ to containerd's proxy
// plugins on a unix socket.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/snapshotter"
	"github.com/applevm/applevm/snapshotter/differ"
)

const (
	// stopTimeout is how long calls that are under way may take to end when
	// the daemon is stopped.
	stopTimeout = 10 * time.Second
	// maxBackoff is the longest pause between attempts to reach containerd.
	maxBackoff = 3 * time.Second
	gib        = 1 << 30
)

// Run serves until ctx ends, and then lets calls that are under way finish. It
// removes the socket. ready, if not nil, is called once the socket accepts
// connections.
//
// The error says what to do when the root directory or the socket are in use.
func Run(ctx context.Context, cfg config.Snapshotter, ready func()) (err error) {
	sn, err := snapshotter.New(ctx, cfg.Root, snapshotter.Options{WritableSize: cfg.WritableSizeGiB * gib, MaxLayers: cfg.MaxLayers})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sn.Close()) }()

	conn, err := dialContainerd(cfg.ContainerdAddress)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()

	l, err := listen(cfg.Address)
	if err != nil {
		return err
	}
	defer os.Remove(cfg.Address)

	server := NewServer(sn, contentproxy.NewContentStore(conn), leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)))
	log.G(ctx).WithFields(log.Fields{"address": cfg.Address, "root": sn.Root()}).Info("serving snapshots and diffs")
	if ready != nil {
		ready()
	}
	return serve(ctx, server, l)
}

// NewServer returns a gRPC server of containerd's snapshots and diff services.
func NewServer(sn *snapshotter.Snapshotter, blobs content.Store, leaser differ.Leaser) *grpc.Server {
	server := grpc.NewServer(
		grpc.UnaryInterceptor(unaryIdentity),
		grpc.StreamInterceptor(streamIdentity),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	d := differ.New(sn, blobs, leaser)
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(d, d))
	return server
}

// dialContainerd returns a connection to containerd, for its content store and
// leases. It connects when it is first used: containerd is often started after the
// plugins that it dials.
func dialContainerd(address string) (*grpc.ClientConn, error) {
	b := backoff.DefaultConfig
	b.MaxDelay = maxBackoff
	conn, err := grpc.NewClient("unix:"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket of the same user
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: maxBackoff}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	return conn, nil
}

// serve serves on l until ctx ends.
func serve(ctx context.Context, server *grpc.Server, l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		server.GracefulStop()
	}()
	select {
	case <-stopped:
	case <-time.After(stopTimeout):
		log.G(ctx).Warn("stopping with calls under way")
		server.Stop()
		<-stopped
	}
	err := <-failed
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil // it was stopped before it had begun to serve
	}
	return err
}
