// Command containerd-shim-applevm-v1 is the containerd runtime
// io.containerd.applevm.v1: each container runs in a virtual machine of its own.
// containerd starts it; it is no use by itself.
package main

import (
	"context"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/internal/unifiedlog"
	"github.com/applevm/applevm/shim/bootstrap"
	"github.com/applevm/applevm/shim/machine"
	"github.com/applevm/applevm/shim/publish"
	"github.com/applevm/applevm/shim/record"
	"github.com/applevm/applevm/shim/task"
	"github.com/applevm/applevm/shim/trace"
)

func main() {
	unifiedlog.Install("shim")
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.InternalPlugin},
		InitFn:   newTaskService,
	})
	// The shim's children are waited for one by one: reaping all that ends would
	// take their exit statuses away.
	shim.RunShim(context.Background(), bootstrap.Shim{}, func(c *shim.Config) {
		c.NoReaper = true
		c.NoSubreaper = true
	})
}

func newTaskService(ic *plugin.InitContext) (any, error) {
	address := ic.Properties[plugins.PropertyTTRPCAddress]
	publisher, err := publish.New(address)
	if err != nil {
		return nil, err
	}
	sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	ns, err := namespaces.NamespaceRequired(ic.Context)
	if err != nil {
		return nil, err
	}
	// Held until the process ends, however it ends.
	lock, err := record.Own(".")
	if err != nil {
		return nil, err
	}
	sd.(shutdown.Service).RegisterCallback(func(context.Context) error { return lock.Close() })
	serving := time.Now()
	return task.New(ic.Context, task.Options{
		Namespace:   ns,
		Incarnation: func() string { return publish.Incarnation(address) },
		Config:      sync.OnceValues(func() (config.Config, error) { return config.Load("") }),
		Driver:      machine.NewDriver,
		Publisher:   publisher,
		Shutdown:    sd.(shutdown.Service),
		TraceFile:   os.Getenv(trace.Env),
		Marks: func(r *trace.Recorder) {
			r.MarkAt(trace.ShimExec, execTime())
			r.MarkAt(trace.ShimServing, serving)
		},
	}), nil
}

// execTime is when containerd ran the start command, zero if that is not known.
func execTime() time.Time {
	n, err := strconv.ParseInt(os.Getenv(trace.EnvExec), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(0, n)
}
