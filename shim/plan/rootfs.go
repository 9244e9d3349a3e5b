package plan

import (
	"strconv"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/vmm"
)

// root gives each image of the snapshot a disk, and the guest the names under
// which it finds them. No path of the host goes into the latter.
func root(m manifest.Manifest) (*guestv1.Rootfs, []vmm.Disk, error) {
	if len(m.Layers) == 0 && m.Writable == nil {
		return nil, nil, invalid("the snapshot's manifest lists no image")
	}
	r := &guestv1.Rootfs{}
	var disks []vmm.Disk
	for i, l := range m.Layers {
		id := "l" + strconv.Itoa(i)
		disks = append(disks, vmm.Disk{ID: id, Path: l.Path, ReadOnly: true})
		r.Lower = append(r.Lower, &guestv1.Tree{Disk: id, FsType: l.FSType, Directory: manifest.LayerRoot})
	}
	if w := m.Writable; w != nil {
		disks = append(disks, vmm.Disk{ID: "w", Path: w.Path})
		r.Writable = &guestv1.Tree{Disk: "w", FsType: w.FSType}
	}
	return r, disks, nil
}
