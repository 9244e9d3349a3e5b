package plan

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/shim/sockets"
)

// AnnotationPublishSocket lists sockets of the container that appear on the host, as
// HOST-PATH:CONTAINER-PATH, separated by commas.
const AnnotationPublishSocket = "dev.applevm.publish-socket"

// maxSocketPath is the longest path of a socket on macOS, in bytes (sockaddr_un, without its
// NUL); Linux has four more.
const maxSocketPath = 103

// maxPath is the longest path in Linux, with its NUL (PATH_MAX).
const maxPath = 4096

// overflowID is nobody's: whose files they are that an ordinary user sees and does not have.
const overflowID = 65534

// socket shares a socket of the host. It has the owner and mode that the host's has, as the
// shim's user sees them.
func (out *mounted) socket(m specs.Mount, dest string, st fs.FileInfo) error {
	path := filepath.Clean(m.Source)
	n := slices.Index(out.sockets, path)
	if n < 0 {
		n = len(out.sockets)
		out.sockets = append(out.sockets, path)
	}
	if len(out.sockets) > api.MaxSockets {
		return invalid("more than %d sockets of the host are mounted", api.MaxSockets)
	}
	uid, gid := uint32(overflowID), uint32(overflowID)
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		switch me := os.Geteuid(); {
		case me == 0:
			uid, gid = s.Uid, s.Gid
		case int(s.Uid) == me:
			uid, gid = 0, 0
		}
	}
	options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "bind" || o == "rbind" })
	out.guest = append(out.guest, specs.Mount{
		Destination: dest, Type: api.SocketMount, Source: fmt.Sprintf("%d:%o:%d:%d", n, st.Mode().Perm(), uid, gid), Options: options,
	})
	return nil
}

// publishedSockets returns the sockets that the annotation publishes.
func publishedSockets(annotations map[string]string) ([]sockets.Publication, error) {
	var out []sockets.Publication
	for text := range strings.SplitSeq(annotations[AnnotationPublishSocket], ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		host, inside, _ := strings.Cut(text, ":")
		p := sockets.Publication{Host: filepath.Clean(host), Container: filepath.Clean(inside)}
		switch {
		case !filepath.IsAbs(p.Host) || !filepath.IsAbs(p.Container):
			return nil, invalid("annotation %s: %q is not HOST-PATH:CONTAINER-PATH with absolute paths", AnnotationPublishSocket, text)
		case len(p.Host) > maxSocketPath:
			return nil, invalid("annotation %s: the path %s is longer than the %d bytes that a socket's can have: choose a shorter one", AnnotationPublishSocket, p.Host, maxSocketPath)
		case len(p.Container) >= maxPath:
			return nil, invalid("annotation %s: the path in the container has more than %d bytes", AnnotationPublishSocket, maxPath-1)
		case slices.ContainsFunc(out, func(o sockets.Publication) bool { return o.Host == p.Host }):
			return nil, invalid("annotation %s: two sockets are published as %s", AnnotationPublishSocket, p.Host)
		case len(out) == api.MaxSockets:
			return nil, invalid("annotation %s: more than %d sockets", AnnotationPublishSocket, api.MaxSockets)
		}
		out = append(out, p)
	}
	return out, nil
}
