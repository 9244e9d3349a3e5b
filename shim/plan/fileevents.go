package plan

import (
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

// AnnotationFileEvents says, as a boolean, whether processes of a container that watch files
// of the host's (inotify(7)) hear what the host does to them.
const AnnotationFileEvents = "dev.applevm.file-events"

// fileEvents decides that: the annotation, else the configuration. Without files that are
// shared there is nothing to hear.
func fileEvents(annotations map[string]string, guest []specs.Mount, fallback bool) (bool, error) {
	if v, ok := annotations[AnnotationFileEvents]; ok {
		var err error
		if fallback, err = strconv.ParseBool(v); err != nil {
			return false, invalid("annotation %s is %q: use true or false", AnnotationFileEvents, v)
		}
	}
	shared := slices.ContainsFunc(guest, func(m specs.Mount) bool { return m.Type == api.ShareMount })
	return fallback && shared, nil
}
