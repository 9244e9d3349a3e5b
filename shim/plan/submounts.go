package plan

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/applevm/applevm/vmm"
)

// SubmountsOf returns what lists the mount points below a directory of the host, if a driver cannot leave
// out what is there (vmm.SubmountSharer); else nil.
func SubmountsOf(drv vmm.Driver) func(dir string) ([]string, error) {
	if d, ok := drv.(vmm.SubmountSharer); ok && d.SharesSubmounts() {
		return submounts
	}
	return nil
}

func submounts(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(strings.TrimSuffix(dir, "/")))
	var out []string
	for _, m := range list {
		if m.Mountpoint != dir {
			out = append(out, m.Mountpoint)
		}
	}
	return out, err
}

// submountWarnings tell of binds that are not recursive, but show what is mounted below all the same.
func submountWarnings(shares []vmm.Share, below func(dir string) ([]string, error)) (warnings []string) {
	if below == nil {
		return nil
	}
	for _, s := range shares {
		if !s.OneMount || s.Path == "" {
			continue
		}
		list, err := below(s.Path)
		switch {
		case err != nil:
			warnings = append(warnings, fmt.Sprintf("what is mounted below %s shows in the container, if there is something: %v", s.Path, err))
		case len(list) > 0:
			warnings = append(warnings, fmt.Sprintf("the mount of %s is not recursive, but here the container sees what is mounted below it: %s", s.Path, strings.Join(list, ", ")))
		}
	}
	return warnings
}
