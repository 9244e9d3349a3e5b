package plan

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

// AnnotationFileEvents says, as a boolean, whether processes of a container that watch files
// of the host's (inotify(7)) hear what the host does to them.
const AnnotationFileEvents = "dev.applevm.file-events"

// fileEvents decides that: the annotation, else the configuration. Without files that are
// shared there is nothing to hear.
func fileEvents(annotations map[string]string, guest []specs.Mount, fallback bool) (bool, error) {
	on, _, err := boolAnnotation(annotations, AnnotationFileEvents, fallback)
	shared := slices.ContainsFunc(guest, func(m specs.Mount) bool { return m.Type == api.ShareMount })
	return on && shared, err
}
