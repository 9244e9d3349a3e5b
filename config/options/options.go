// Package options reads the options that containerd hands to a runtime with a
// container: settings of the configuration, for this one container.
package options

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/config"
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

// Apply changes c by the options, TOML with the tables guest, machine and qemu of
// the configuration file. Options of other runtimes, which clients add by
// themselves, are passed over.
func Apply(c *config.Config, a *anypb.Any) (Asked, error) {
	if a == nil || string(a.MessageName()) != typeName && a.TypeUrl != typeName {
		return Asked{}, nil
	}
	var o runtimeoptions.Options
	if err := (&anypb.Any{TypeUrl: "type.googleapis.com/" + typeName, Value: a.Value}).UnmarshalTo(&o); err != nil {
		return Asked{}, fmt.Errorf("the runtime's options: %w", err)
	}
	body, where := o.ConfigBody, "the runtime's options"
	if o.ConfigPath != "" {
		where = "the runtime's options in " + o.ConfigPath
		if !filepath.IsAbs(o.ConfigPath) {
			return Asked{}, fmt.Errorf("%s: use an absolute path", where)
		}
		f, err := os.Open(o.ConfigPath)
		if err != nil {
			return Asked{}, fmt.Errorf("the runtime's options: %w", err)
		}
		defer f.Close()
		if body, err = io.ReadAll(io.LimitReader(f, maxFile+1)); err != nil {
			return Asked{}, fmt.Errorf("the runtime's options: %w", err)
		}
	}
	if len(body) > maxFile {
		return Asked{}, fmt.Errorf("%s: more than %d bytes", where, maxFile)
	}
	n := *c
	n.Machine.CPUs, n.Machine.MemoryMiB = 0, 0
	file := struct {
		TypeURL    string          `toml:"TypeUrl"` // containerd's own keys
		ConfigPath string          `toml:"ConfigPath"`
		Guest      *config.Guest   `toml:"guest"`
		Machine    *config.Machine `toml:"machine"`
		QEMU       *config.QEMU    `toml:"qemu"`
	}{Guest: &n.Guest, Machine: &n.Machine, QEMU: &n.QEMU}
	if err := toml.NewDecoder(bytes.NewReader(body)).DisallowUnknownFields().Decode(&file); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return Asked{}, fmt.Errorf("%s: unknown setting:\n%s", where, strict.String())
		}
		return Asked{}, fmt.Errorf("%s: %w", where, err)
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
