package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/config/options"
	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/network/lan"
	"github.com/applevm/applevm/network/tapns"
	"github.com/applevm/applevm/shim/hooks"
	"github.com/applevm/applevm/shim/machine"
	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/shim/procroot"
	"github.com/applevm/applevm/shim/record"
	"github.com/applevm/applevm/shim/stdio"
	"github.com/applevm/applevm/shim/trace"
)

// create makes the container: plan, boot, and while the guest boots everything
// that does not need it, then one request to the guest. Whatever it leaves
// behind on failure destroy removes.
func (c *container) create(ctx context.Context, r *taskapi.CreateTaskRequest) error {
	c.rec.Mark(trace.CreateBegin)
	cfg, err := c.s.opts.Config()
	if err != nil {
		return err
	}
	asked, err := options.Apply(&cfg, r.Options)
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	drv, err := c.s.opts.Driver(cfg)
	if err != nil {
		return err
	}
	img, err := image.OpenFor(cfg.Guest.Dir, goarch)
	if err != nil {
		return err
	}
	spec, err := readSpec(c.bundle)
	if err != nil {
		return err
	}
	rootfs, err := plan.FindRootfs(r.Rootfs)
	if err != nil {
		return err
	}
	p, err := plan.New(plan.Input{
		Namespace:  c.s.opts.Namespace,
		ID:         c.id,
		Bundle:     c.bundle,
		Spec:       spec,
		Rootfs:     rootfs,
		Machine:    cfg.Machine,
		Network:    cfg.Network,
		Wish:       plan.Size{CPUs: asked.CPUs, Memory: asked.MemoryMiB << 20},
		Boot:       plan.Boot{Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline},
		Host:       plan.Host{CPUs: runtime.NumCPU(), DefaultCPUs: machine.DefaultCPUs(drv), Memory: machine.HostMemory(), Name: hostName()},
		Translator: plan.TranslatorOf(drv),
		Submounts:  plan.SubmountsOf(drv),
		NAT:        plan.HasNAT(drv),
		Stat:       os.Stat,
		IsEmpty:    plan.IsEmpty,
		ReadFile:   os.ReadFile,
		Interfaces: tapns.Count,
		Join:       func(name string, m lan.Member) (*lan.Port, error) { return c.join(ctx, name, m) },
		Tmpfs:      plan.Tmpfs,
	})
	if err != nil {
		return err
	}
	for _, w := range p.Warnings {
		log.G(ctx).Warn(w)
	}
	c.mu.Lock()
	c.hooks, c.annotations = p.Hooks, p.Annotations
	c.size, c.limits = plan.Size{CPUs: p.Machine.CPUs, Memory: p.Machine.Memory}, p.Limits
	c.mu.Unlock()

	dir, err := record.MakeMachineDir(c.bundle, c.s.opts.Namespace, c.id)
	if err != nil {
		return err
	}
	if err := c.save(func(r *record.Record) { r.MachineDir = dir }); err != nil {
		return err
	}
	p.Machine.Dir = dir
	if err := c.openSockets(p, cfg.Network.MaxConnections); err != nil {
		return err
	}
	unplug, err := c.connect(&p.Machine, p.Network)
	if err != nil {
		return err
	}
	unmount, err := mountRoot(p.RootMount, filepath.Join(c.bundle, plan.RootDir))
	if err != nil {
		unplug()
		return err
	}
	root, err := procroot.New()
	if err != nil {
		log.G(ctx).WithError(err).Warn("the container's files do not show in /proc: nerdctl cp will not find them")
	}
	if root != nil {
		p.Machine.Root = root.Mount
	}
	m, err := machine.Start(ctx, drv, p.Machine, c.rec)
	root.Close()
	unplug() // the VMM has its own
	// A machine that runs has the directory open. Now nothing is left on the host
	// when it ends, however it does.
	if uerr := unmount(); err == nil && uerr != nil {
		err = errors.Join(uerr, m.Kill())
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.machine = m
	c.mu.Unlock()
	if err := c.serveSockets(); err != nil {
		return err
	}
	if err := c.save(func(r *record.Record) {
		r.PID = m.PID()
		r.Hooks = len(p.Hooks.Prestart)+len(p.Hooks.CreateRuntime)+len(p.Hooks.Poststop) > 0 //nolint:staticcheck // prestart is deprecated, not gone
	}); err != nil {
		return err
	}
	if err := c.prepare(ctx, time.Duration(cfg.Machine.BootTimeout), p); err != nil {
		if errors.Is(err, context.Canceled) {
			return errCanceled
		}
		return err
	}
	if err := c.createInGuest(ctx, p); err != nil {
		return err
	}
	c.keepClock()
	if root != nil {
		root.Attach(c.file)
	}

	c.mu.Lock()
	c.created = true
	c.mu.Unlock()
	c.s.events.send(&apievents.TaskCreate{
		ContainerID: c.id,
		Bundle:      r.Bundle,
		Rootfs:      r.Rootfs,
		IO:          &apievents.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Pid:         c.pid(),
	})
	c.init.setInGuest(true)
	go c.watchMemory()
	go c.followFiles(p)
	if p.FileEvents {
		go c.followShares()
	}
	if p.Network.HostPorts {
		c.portsGone.Go(func() { c.followPorts(cfg.Network.MaxConnections) })
	}
	go c.init.watch()
	c.rec.Mark(trace.CreateEnd)
	return nil
}

// hostName is the host's name, empty if it is not known.
func hostName() string {
	name, _ := os.Hostname() // the container can do without
	return name
}

// prepare does what can be done while the guest boots, and waits for its call.
func (c *container) prepare(ctx context.Context, bootTimeout time.Duration, p *plan.Plan) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.machine.Connect(ctx, bootTimeout) })
	g.Go(func() error {
		ctx, cancel := context.WithTimeout(ctx, stdioTimeout)
		defer cancel()
		io, err := stdio.Open(ctx, c.init.stdio)
		if err != nil {
			return err
		}
		io.Copy(c.machine.Streams())
		c.init.setIO(io)
		return nil
	})
	g.Go(func() error {
		state := c.state(specs.StateCreating)
		if err := hooks.Run(ctx, "prestart", p.Hooks.Prestart, state); err != nil { //nolint:staticcheck // deprecated, not gone
			return err
		}
		if err := hooks.Run(ctx, "createRuntime", p.Hooks.CreateRuntime, state); err != nil {
			return err
		}
		if p.Network.CNI > 0 {
			var err error
			if p.Container.Interfaces, err = c.joinNetworks(p.Network); err != nil {
				return err
			}
		}
		// Hooks write some of the files that are copied.
		files, err := p.ReadFiles()
		p.Container.Files = files
		return err
	})
	return g.Wait()
}

// createInGuest has the guest make the container. The agent's version is asked
// for at the same time: an agent of another version may have misunderstood.
func (c *container) createInGuest(ctx context.Context, p *plan.Plan) error {
	opts, timeout := p.Container, createTimeout
	if p.CopiesUp {
		timeout = fillTimeout
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		var info *guestv1.InfoResponse
		err := c.machine.Call(ctx, createTimeout, func(ctx context.Context) (err error) {
			info, err = c.machine.Guest().Info(ctx, &guestv1.InfoRequest{})
			return err
		})
		if err != nil {
			return fmt.Errorf("ask the guest for its version: %w", err)
		}
		if info.Version != api.Version {
			return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(
				"the guest image's agent speaks version %d, the shim version %d: build the guest image anew", info.Version, api.Version))
		}
		c.rec.Guest("agent-start", info.AgentStartNs)
		c.rec.Guest("agent-ready", info.AgentReadyNs)
		return nil
	})
	g.Go(func() error {
		opts.ClockUnixNanos = time.Now().UnixNano()
		options, err := anypb.New(opts)
		if err != nil {
			return err
		}
		req := &taskapi.CreateTaskRequest{ID: c.id, Terminal: c.init.stdio.Terminal, Options: options}
		req.Stdin, req.Stdout, req.Stderr = c.init.io.Names()
		c.rec.Mark(trace.GuestCreate)
		err = c.call(ctx, timeout, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
			_, err := t.Create(ctx, req)
			return err
		})
		c.rec.Mark(trace.GuestCreated)
		return runtimeError("OCI runtime create failed", err)
	})
	return g.Wait()
}

// file does something with one of the container's files, for package procroot.
func (c *container) file(ctx context.Context, req *guestv1.FileRequest) (resp *guestv1.FileResponse, err error) {
	req.ContainerId = c.id
	err = c.machine.Call(ctx, fileTimeout, func(ctx context.Context) (err error) {
		resp, err = c.machine.Files().File(ctx, req)
		return err
	})
	return resp, err
}
