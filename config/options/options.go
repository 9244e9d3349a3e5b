// Package options reads the options that containerd hands to a runtime with a
// container: settings of the configuration, for this one container.
package options

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/config"
	optionsv1 "github.com/applevm/applevm/config/options/v1"
)

// Asked is the machine's size as the options ask for it; 0 is not asked.
type Asked struct {
	CPUs      int
	MemoryMiB int64
}

// typeName is how containerd names the options of a runtime that it does not
// know (types/runtimeoptions/v1): ctr's --runtime-config-path, and the table
// "options" of a runtime of its CRI plugin.
const typeName = "runtimeoptions.v1.Options"

// maxFile bounds the options, in bytes.
const maxFile = 1 << 20

// Apply changes c by the options: a message of package optionsv1, or TOML with the
// tables guest, machine, network and qemu of the configuration file. Options of other
// runtimes, which clients add by themselves, are passed over.
func Apply(c *config.Config, a *anypb.Any) (Asked, error) {
	where, n := "the runtime's options", *c
	n.Machine.CPUs, n.Machine.MemoryMiB = 0, 0
	switch name(a) {
	case typeName:
		body, path, err := text(a)
		if err != nil {
			return Asked{}, fmt.Errorf("%s: %w", where, err)
		}
		if path != "" {
			where += " in " + path
		}
		if err := fromTOML(&n, body); err != nil {
			return Asked{}, fmt.Errorf("%s: %w", where, err)
		}
	case string((*optionsv1.Options)(nil).ProtoReflect().Descriptor().FullName()):
		var o optionsv1.Options
		if err := proto.Unmarshal(a.Value, &o); err != nil {
			return Asked{}, fmt.Errorf("%s: %w", where, err)
		}
		fromMessage(&n, &o)
	default:
		return Asked{}, nil
	}
	asked := Asked{n.Machine.CPUs, n.Machine.MemoryMiB}
	if asked.CPUs == 0 {
		n.Machine.CPUs = c.Machine.CPUs
	}
	if asked.MemoryMiB == 0 {
		n.Machine.MemoryMiB = c.Machine.MemoryMiB
	}
	if err := n.Validate(); err != nil {
		return Asked{}, fmt.Errorf("%s: %w", where, err)
	}
	*c = n
	return asked, nil
}

// name is the message's, whether or not its URL has more than the name (typeurl's
// have not).
func name(a *anypb.Any) string {
	url := a.GetTypeUrl()
	return url[strings.LastIndexByte(url, '/')+1:]
}

// fromMessage takes over what o says.
func fromMessage(c *config.Config, o *optionsv1.Options) {
	set := func(to *string, s string) {
		if s != "" {
			*to = s
		}
	}
	set(&c.Guest.Dir, o.GetGuest().GetDir())
	set(&c.QEMU.Binary, o.GetQemu().GetBinary())
	set(&c.QEMU.Accel, o.GetQemu().GetAccel())
	m := o.GetMachine()
	c.Machine.CPUs = int(m.GetCpus())
	c.Machine.MemoryMiB = int64(min(m.GetMemoryMib(), math.MaxInt64))
	if t := m.GetBootTimeoutNs(); t != 0 {
		c.Machine.BootTimeout = config.Duration(t)
	}
}

// text returns the TOML of containerd's message, and the file that it is from.
func text(a *anypb.Any) (body []byte, path string, err error) {
	var o runtimeoptions.Options
	if err := proto.Unmarshal(a.Value, &o); err != nil {
		return nil, "", err
	}
	body = o.ConfigBody
	if path = o.ConfigPath; path != "" {
		if !filepath.IsAbs(path) {
			return nil, "", fmt.Errorf("%s: use an absolute path", path)
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, "", err
		}
		defer f.Close()
		if body, err = io.ReadAll(io.LimitReader(f, maxFile+1)); err != nil {
			return nil, "", err
		}
	}
	if len(body) > maxFile {
		return nil, "", fmt.Errorf("%s: more than %d bytes", path, maxFile)
	}
	return body, path, nil
}

// fromTOML takes over what body says.
func fromTOML(n *config.Config, body []byte) error {
	file := struct {
		TypeURL    string          `toml:"TypeUrl"` // containerd's own keys
		ConfigPath string          `toml:"ConfigPath"`
		Guest      *config.Guest   `toml:"guest"`
		Machine    *config.Machine `toml:"machine"`
		Network    *config.Network `toml:"network"`
		QEMU       *config.QEMU    `toml:"qemu"`
	}{Guest: &n.Guest, Machine: &n.Machine, Network: &n.Network, QEMU: &n.QEMU}
	if err := toml.NewDecoder(bytes.NewReader(body)).DisallowUnknownFields().Decode(&file); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return fmt.Errorf("unknown setting:\n%s", strict.String())
		}
		return err
	}
	return nil
}
