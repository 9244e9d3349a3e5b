package snapshotter

import (
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// clientKey strips what containerd's metadata service puts before a client's
// key, "<namespace>/<number>/".
func clientKey(key string) string {
	_, rest, ok := strings.Cut(key, "/")
	if !ok {
		return key
	}
	number, client, ok := strings.Cut(rest, "/")
	if !ok || number == "" || strings.Trim(number, "0123456789") != "" {
		return key
	}
	return client
}

// isExtraction reports whether an active snapshot is prepared for a layer to
// be applied to it, and not for a container. The unpacker sets the label;
// clients that unpack by themselves at least use its form of key.
func isExtraction(key string, labels map[string]string) bool {
	return labels[snapshots.LabelSnapshotRef] != "" ||
		strings.HasPrefix(clientKey(key), snapshots.UnpackKeyPrefix+"-")
}

// isVolumeView reports whether a view is the one that nerdctl makes to copy
// the content of an image's volumes: its key is a temporary directory
// ".../initialC<random>". On macOS, where nothing can be mounted, nerdctl
// goes on only if such a view has no mounts.
func isVolumeView(key string) bool {
	return strings.Contains(key, "/initialC")
}
