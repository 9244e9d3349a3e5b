package agent

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/guest/api"
)

// resourcesType is the end of the type URL that containerd gives resources, as
// processType is of a process.
const resourcesType = "opencontainers/runtime-spec/1/LinuxResources"

// update changes the limits of a container that has not ended. What the request
// does not name stays, as do the rules for devices.
func (c *container) update(a *anypb.Any) error {
	if !strings.HasSuffix(a.GetTypeUrl(), resourcesType) {
		return invalid("the resources have type %q, not %s", a.GetTypeUrl(), resourcesType)
	}
	if len(a.GetValue()) > api.MaxSpec {
		return invalid("the resources are %d bytes long, more than %d", len(a.GetValue()), api.MaxSpec)
	}
	disks, err := c.rootfs.devices()
	if err != nil {
		return err
	}
	c.updateMu.Lock()
	defer c.updateMu.Unlock()
	lc, err := c.running()
	if err != nil {
		return err
	}
	merged, err := mergeResources(c.resources, a.GetValue())
	if err != nil {
		return invalid("the resources are no valid JSON: %w", err)
	}
	throttleDisks(merged, disks)
	resources, err := libcontainerResources(merged)
	if err != nil {
		return invalid("%w", err)
	}
	config := lc.Config()
	group := *config.Cgroups
	old := group.Resources
	resources.Devices, resources.SkipDevices = old.Devices, true
	resources.Freezer = old.Freezer
	group.Resources = resources
	config.Cgroups = &group
	err = lc.Set(config)
	// libcontainer starts no process while this is set.
	resources.SkipDevices = false
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	c.resources = merged
	return nil
}

// mergeResources returns a copy of old in which what the JSON update names is
// changed. Lists are replaced.
func mergeResources(old *specs.LinuxResources, update []byte) (*specs.LinuxResources, error) {
	if old == nil {
		old = &specs.LinuxResources{}
	}
	b, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	var r, u specs.LinuxResources
	for _, from := range [][]byte{b, update} {
		if err := json.Unmarshal(from, &r); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(update, &u); err != nil {
		return nil, err
	}
	r.Devices = old.Devices
	if m := u.Memory; m != nil && m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
		// A limit of memory and swap needs one of memory.
		r.Memory.Swap = nil
	}
	return &r, nil
}

// libcontainerResources translates the spec's resources.
func libcontainerResources(r *specs.LinuxResources) (*cgroups.Resources, error) {
	group, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		Spec: &specs.Spec{Linux: &specs.Linux{Resources: r}},
	}, nil)
	if err != nil {
		return nil, err
	}
	return group.Resources, nil
}

// throttleDisks has limits of block devices hold for the container's disks. A
// client names devices of the host, by numbers that belong to others here, or to
// none, which the kernel refuses. What is meant is the container's input and
// output, all of which goes to these disks; of several limits the lowest holds.
func throttleDisks(r *specs.LinuxResources, disks []device) {
	if r == nil || r.BlockIO == nil {
		return
	}
	b := r.BlockIO
	for _, list := range []*[]specs.LinuxThrottleDevice{
		&b.ThrottleReadBpsDevice, &b.ThrottleWriteBpsDevice, &b.ThrottleReadIOPSDevice, &b.ThrottleWriteIOPSDevice,
	} {
		if len(*list) == 0 {
			continue
		}
		rate := (*list)[0].Rate
		for _, d := range *list {
			rate = min(rate, d.Rate)
		}
		*list = nil
		for _, d := range disks {
			var t specs.LinuxThrottleDevice
			t.Major, t.Minor, t.Rate = d.major, d.minor, rate
			*list = append(*list, t)
		}
	}
	if len(b.WeightDevice) > 0 {
		w := b.WeightDevice[len(b.WeightDevice)-1]
		b.WeightDevice = nil
		for _, d := range disks {
			w.Major, w.Minor = d.major, d.minor
			b.WeightDevice = append(b.WeightDevice, w)
		}
	}
}
