package plan

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/vmm"
)

// guestMounts are the file systems that the guest's kernel makes itself, without
// a device. It may have been built without some of them.
var guestMounts = []string{"proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs",
	"hugetlbfs", "bpf", "tracefs", "debugfs", "securityfs", "configfs", "fusectl", "binfmt_misc"}

// copied are the files that clients make for each container, and change while it
// runs. The container gets a copy of each, which follows the client's; it may write to it
// if the mount says so, and what it writes stays its own, until the client writes next.
var copied = []string{etcHosts, etcHostname, etcResolv}

// mounted is what becomes of a spec's mounts: those that the guest makes, directories
// and files of the host that are shared (the guest binds them, by their tags), and
// files that are copied.
type mounted struct {
	guest  []specs.Mount
	shares []vmm.Share
	files  []File
	// disks are those of block volumes.
	disks []vmm.Disk
	// sockets are paths of the host's, in the order of their numbers.
	sockets []string
	// copiesUp says that there are new volumes among the shares.
	copiesUp bool
}

func mounts(list []specs.Mount, volumes map[string]bool, in Input) (mounted, error) {
	var out mounted
	for _, m := range list {
		dest := filepath.Clean(m.Destination)
		if !filepath.IsAbs(dest) {
			return out, invalid("mount destination %q is not an absolute path", m.Destination)
		}
		if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
			return out, unsupported("the ID-mapped mount at %s is not implemented", dest)
		}
		bind := m.Type == "bind" || m.Type == "uds" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		switch {
		case bind:
			if own, ok := sharedMemory(m, dest, in.Tmpfs); ok {
				out.guest = append(out.guest, own)
				continue
			}
			fresh := volumes[dest] && in.IsEmpty(m.Source)
			if err := out.bind(m, dest, fresh, in.Stat); err != nil {
				return out, err
			}
		case m.Type == "ext4":
			if err := out.block(m, dest, in.Stat); err != nil {
				return out, err
			}
		case slices.Contains(guestMounts, m.Type):
			out.guest = append(out.guest, specs.Mount{Destination: dest, Type: m.Type, Source: m.Type, Options: m.Options})
		default:
			return out, unsupported("the mount of type %q at %s is not implemented", m.Type, dest)
		}
	}
	return out, nil
}

// mountSource looks at what is to be mounted at dest.
func mountSource(m specs.Mount, dest string, stat func(string) (fs.FileInfo, error)) (fs.FileInfo, error) {
	if !filepath.IsAbs(m.Source) {
		return nil, invalid("mount source %q of %s is not an absolute path", m.Source, dest)
	}
	st, err := stat(m.Source)
	if err != nil {
		return nil, invalid("mount source of %s: %w", dest, err)
	}
	return st, nil
}

func isReadOnly(m specs.Mount) bool {
	return slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro")
}

// bind shares a directory or a file, or has a file copied that is made for the
// container. fresh says that it is a new volume.
func (out *mounted) bind(m specs.Mount, dest string, fresh bool, stat func(string) (fs.FileInfo, error)) error {
	st, err := mountSource(m, dest, stat)
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return out.socket(m, dest, st)
	}
	if m.Type == "uds" {
		return invalid("mount source %s of %s is no socket", m.Source, dest)
	}
	if slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared") {
		return unsupported("the mount at %s asks for shared propagation, but what a machine mounts cannot appear on the host: use rslave or rprivate", dest)
	}
	readOnly := isReadOnly(m)
	if st.IsDir() {
		options := m.Options
		if fresh && !readOnly {
			options, out.copiesUp = append(slices.Clone(options), api.CopyUpOption), true
		}
		out.guest = append(out.guest, specs.Mount{
			Destination: dest, Type: api.ShareMount, Source: out.share(m.Source, readOnly, !slices.Contains(m.Options, "rbind")), Options: options,
		})
		return nil
	}
	if !st.Mode().IsRegular() {
		return unsupported("mounting the host's special file %s at %s is not implemented", m.Source, dest)
	}
	if slices.Contains(copied, dest) {
		if st.Size() > api.MaxFile {
			return unsupported("mounting the host file %s at %s is not implemented for files of more than %d bytes", m.Source, dest, api.MaxFile)
		}
		out.files = append(out.files, File{Source: m.Source, Destination: dest, ReadOnly: readOnly})
		return nil
	}
	out.guest = append(out.guest, specs.Mount{
		Destination: dest, Type: api.ShareMount, Source: out.shareFile(m.Source, readOnly), Options: m.Options,
	})
	return nil
}

// share returns the tag by which the guest finds the directory, without what is mounted below
// it if oneMount. One that is mounted at several places is one device.
func (out *mounted) share(path string, readOnly, oneMount bool) string {
	path = filepath.Clean(path)
	for _, s := range out.shares {
		if s.Path == path && s.ReadOnly == readOnly && s.OneMount == oneMount {
			return s.Tag
		}
	}
	s := vmm.Share{Tag: "m" + strconv.Itoa(len(out.shares)), Path: path, ReadOnly: readOnly, OneMount: oneMount}
	out.shares = append(out.shares, s)
	return s.Tag
}

// shareFile returns the tag and the name by which the guest finds a file. All files that
// are mounted in the same way are one device.
func (out *mounted) shareFile(path string, readOnly bool) string {
	tag := "files"
	if readOnly {
		tag = "files-ro"
	}
	path = filepath.Clean(path)
	i := slices.IndexFunc(out.shares, func(s vmm.Share) bool { return s.Tag == tag })
	if i < 0 {
		i = len(out.shares)
		out.shares = append(out.shares, vmm.Share{Tag: tag, ReadOnly: readOnly})
	}
	s := &out.shares[i]
	n := slices.Index(s.Files, path)
	if n < 0 {
		n = len(s.Files)
		s.Files = append(s.Files, path)
	}
	return tag + "/" + strconv.Itoa(n)
}

// maxRequest bounds the spec and the files of one container together, in bytes.
// A ttrpc message holds 4 MiB (github.com/containerd/ttrpc, messageLengthMax);
// the rest is left to the message's other fields.
const maxRequest = 4<<20 - 64<<10

// ReadFiles takes the copies that p asks for, and checks that they fit into one
// request together with the spec. The owner of a file on the host means nothing
// to the guest: copies belong to root.
func (p *Plan) ReadFiles() ([]*guestv1.File, error) {
	var out []*guestv1.File
	total := len(p.Container.GetSpec())
	for _, f := range p.Files {
		b, mode, err := p.ReadFile(f)
		if err != nil {
			return nil, err
		}
		total += len(b) + len(f.Destination) + 64
		if total > maxRequest {
			return nil, unsupported("the files mounted into the container have more than %d bytes together, which is not implemented", maxRequest)
		}
		out = append(out, &guestv1.File{Path: f.Destination, Content: b, Mode: uint32(mode.Perm()), ReadOnly: f.ReadOnly, Optional: f.Generated})
	}
	return out, nil
}

// ReadFile returns what the copy of a file is to have, and its mode.
func (p *Plan) ReadFile(f File) ([]byte, fs.FileMode, error) {
	if f.Generated {
		return []byte(f.Content), 0o644, nil
	}
	b, mode, err := readFile(f.Source)
	if err != nil {
		return nil, 0, fmt.Errorf("copy the host file %s to %s: %w", f.Source, f.Destination, err)
	}
	if p.Network.User && f.Destination == etcResolv {
		b = p.Network.clientResolvConf(b)
	}
	return b, mode, nil
}

// readFile reads a regular file of at most api.MaxFile bytes. It never blocks on
// a FIFO that took the file's place.
func readFile(name string) ([]byte, fs.FileMode, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		return nil, 0, invalid("it is not a regular file any more")
	}
	b, err := io.ReadAll(io.LimitReader(f, api.MaxFile+1))
	if err == nil && len(b) > api.MaxFile {
		err = unsupported("it has more than %d bytes", api.MaxFile)
	}
	return b, st.Mode(), err
}
