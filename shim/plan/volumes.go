package plan

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// annotationNerdctlMounts, alone or with a number after it ("nerdctl/mounts.0"), tells of a
// container's mounts (nerdctl, pkg/labels).
const annotationNerdctlMounts = "nerdctl/mounts"

// volumes returns the destinations of the mounts that are volumes of nerdctl's. A new one
// has what the image has in its place. nerdctl copies that on the host, if it sees it there.
func volumes(annotations map[string]string) map[string]bool {
	out := map[string]bool{}
	for key, value := range annotations {
		if key != annotationNerdctlMounts && !strings.HasPrefix(key, annotationNerdctlMounts+".") {
			continue
		}
		type mount struct {
			Type, Destination string
		}
		var list []mount
		if json.Unmarshal([]byte(value), &list) != nil {
			var one mount
			if json.Unmarshal([]byte(value), &one) != nil {
				continue // nerdctl's own business
			}
			list = append(list, one)
		}
		for _, m := range list {
			if m.Type == "volume" && m.Destination != "" {
				out[filepath.Clean(m.Destination)] = true
			}
		}
	}
	return out
}

// IsEmpty tells whether a directory of the host has nothing in it.
func IsEmpty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	return len(names) == 0 && err != nil
}
