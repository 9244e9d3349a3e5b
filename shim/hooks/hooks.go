// Package hooks runs the OCI hooks of a container on the host.
//
// The runtime specification's hooks prestart, createRuntime, poststart and
// poststop run in the runtime's namespaces: on the host, in our case. Those that
// run in the container's are no matter of this package: startContainer hooks are run
// by the guest, createContainer hooks are refused.
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultTimeout bounds a hook that sets no timeout of its own.
const defaultTimeout = 30 * time.Second

// maxOutput bounds what is kept of a hook's output for its error, in bytes.
const maxOutput = 4 << 10

// Run runs the hooks one after the other, each with state on its standard
// input, and stops at the first that fails. A hook's timeout is honoured.
func Run(ctx context.Context, kind string, list []specs.Hook, state specs.State) error {
	if len(list) == 0 {
		return nil
	}
	in, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for _, h := range list {
		if err := run(ctx, h, in); err != nil {
			return fmt.Errorf("%s hook %s: %w", kind, h.Path, err)
		}
	}
	return nil
}

// RunAll is Run for hooks of which every one must get its chance: it goes on
// after a failure and returns all errors.
func RunAll(ctx context.Context, kind string, list []specs.Hook, state specs.State) error {
	var errs []error
	for _, h := range list {
		errs = append(errs, Run(ctx, kind, []specs.Hook{h}, state))
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, h specs.Hook, in []byte) error {
	timeout := defaultTimeout
	if h.Timeout != nil && *h.Timeout > 0 {
		timeout = time.Duration(*h.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	var out tail
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = h.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would hand down the shim's own
	}
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stdout = &out
	cmd.Stderr = &out
	killGroup(cmd)
	// A daemon that the hook has left behind may hold its output open.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("killed after %v", timeout)
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	if s := strings.TrimSpace(out.String()); s != "" {
		return fmt.Errorf("%w: %s", err, s)
	}
	return err
}

// tail keeps the last maxOutput bytes written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - maxOutput; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }
