package plan

import (
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/types"

	"github.com/applevm/applevm/guest/api"
)

// ImageMounts are the mount types that images takes, as containerd's
// MountCapabilities name them: without these its mount manager would mount them
// on the host.
var ImageMounts = []string{"ext4", "erofs"}

// ImageTransforms are the prefixes of a final mount's type that images takes.
var ImageTransforms = []string{"format", "mkdir"}

// images reads a root file system of image files, as containerd's erofs snapshotter
// gives it (containerd 2.4.2, plugins/snapshots/erofs): one mount an image, and
// unless there is but one a last mount that puts them together, an overlay or a bind
// of one, whose "{{ mount N }}" and "{{ overlay N M }}" mean what the mount manager
// means by them (core/mount/manager/format.go). ok is false for other mounts.
func images(rootfs []*types.Mount) (r Rootfs, ok bool, err error) {
	if !slices.Contains(ImageMounts, rootfs[0].GetType()) {
		return Rootfs{}, false, nil
	}
	list := rootfs
	var final *types.Mount
	if last := rootfs[len(rootfs)-1]; !slices.Contains(ImageMounts, last.GetType()) {
		list, final = rootfs[:len(rootfs)-1], last
	}
	var imgs stack
	for _, m := range list {
		i, err := image(m)
		if err != nil {
			return Rootfs{}, true, err
		}
		imgs = append(imgs, i)
	}
	switch {
	case final != nil:
		r, err = imgs.combine(final)
	case len(imgs) == 1 && imgs[0].readOnly:
		r.Layers = []Image{imgs[0].Image}
	default:
		err = unsupported("a root filesystem of %d images without a mount that puts them together is not implemented", len(imgs))
	}
	return r, true, err
}

// stack is the images that templates name by their number.
type stack []stackImage

type stackImage struct {
	Image
	readOnly bool
}

func image(m *types.Mount) (stackImage, error) {
	i := stackImage{Image: Image{Path: m.GetSource(), FSType: m.GetType()}}
	switch {
	case !slices.Contains(ImageMounts, i.FSType):
		return i, unsupported("a root filesystem with a mount of type %q among its images is not implemented", i.FSType)
	case !filepath.IsAbs(i.Path):
		return i, invalid("the root filesystem's image %q is not an absolute path", i.Path)
	}
	i.readOnly = i.FSType == "erofs"
	for _, o := range m.GetOptions() {
		switch o {
		case "ro":
			i.readOnly = true
		case "rw", "loop", "noload": // a disk needs no loop device; read-only, ext4 replays no journal either
		default:
			return i, unsupported("the option %q of the root filesystem's image %s is not implemented", o, i.Path)
		}
	}
	return i, nil
}

// combine stacks the images as the final mount says.
func (s stack) combine(final *types.Mount) (Rootfs, error) {
	parts := strings.Split(final.GetType(), "/")
	kind := parts[len(parts)-1]
	for _, t := range parts[:len(parts)-1] {
		if !slices.Contains(ImageTransforms, t) {
			return Rootfs{}, unsupported("a root filesystem whose last mount is of type %q is not implemented", final.GetType())
		}
	}
	switch kind {
	case "overlay":
		return s.overlay(final.GetOptions())
	case "bind":
		return s.bind(final)
	}
	return Rootfs{}, unsupported("a root filesystem whose last mount is of type %q is not implemented", final.GetType())
}

func (s stack) overlay(options []string) (Rootfs, error) {
	var lower, upper, work []place
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		if (name == "upperdir" || name == "workdir") && filepath.IsAbs(value) {
			return Rootfs{}, unsupported("the root filesystem's overlay writes to a directory of the host, %s, over images, which is not implemented: "+
				`set default_size in containerd's [plugins."io.containerd.snapshotter.v1.erofs"], so that it writes to an image`, value)
		}
		var err error
		switch name {
		case "lowerdir":
			lower, err = s.places(value)
		case "upperdir":
			upper, err = s.places(value)
		case "workdir":
			work, err = s.places(value)
		case "X-containerd.mkdir.path": // the guest makes the directories of its overlay itself
		case "ro", "rw", "index", "userxattr", "redirect_dir", "metacopy", "xino", "volatile":
			// The guest's own overlay decides these: what it writes must be what
			// a reader on the host understands.
		default:
			err = unsupported("the option %q of the root filesystem's overlay is not implemented", o)
		}
		if err != nil {
			return Rootfs{}, err
		}
	}
	var r Rootfs
	for _, p := range slices.Backward(lower) { // overlayfs names the topmost first
		i := s[p.image].Image
		i.Directory = p.dir
		r.Layers = append(r.Layers, i)
	}
	if len(upper) == 0 && len(work) == 0 {
		return r, nil
	}
	if len(upper) != 1 || len(work) != 1 || upper[0].image != work[0].image {
		return Rootfs{}, invalid("the root filesystem's overlay needs one upperdir and one workdir, on the same image")
	}
	w, err := s.writable(upper[0])
	r.Writable = w
	return r, err
}

// bind takes one of the images, or the directory for changes in it.
func (s stack) bind(final *types.Mount) (Rootfs, error) {
	ps, err := s.places(final.GetSource())
	if err != nil {
		return Rootfs{}, err
	}
	if len(ps) != 1 {
		return Rootfs{}, invalid("the root filesystem is a bind of %d places (%q)", len(ps), final.GetSource())
	}
	i := s[ps[0].image]
	if slices.Contains(final.GetOptions(), "ro") || i.readOnly {
		i.Directory = ps[0].dir
		return Rootfs{Layers: []Image{i.Image}}, nil
	}
	w, err := s.writable(ps[0])
	return Rootfs{Writable: w}, err
}

// writable checks that p is where the guest keeps changes.
func (s stack) writable(p place) (*Image, error) {
	i := s[p.image]
	switch {
	case i.readOnly:
		return nil, invalid("the root filesystem's changes are to go to the image %s, which is read-only", i.Path)
	case p.dir != api.UpperDir:
		return nil, unsupported("changes of the root filesystem in the directory %q of an image are not implemented: it must be %q", p.dir, api.UpperDir)
	}
	return &i.Image, nil
}

// place is a directory of an image, which is named by its number.
type place struct {
	image int
	dir   string
}

// mountedImage matches one image's mount point and what follows it in a path,
// allImages a row of them.
var (
	mountedImage = regexp.MustCompile(`^\{\{ ?mount (\d{1,4}) ?\}\}(/[^{}]*)?$`)
	allImages    = regexp.MustCompile(`^\{\{ ?overlay (\d{1,4}) (\d{1,4}) ?\}\}$`)
)

// places resolves a list of templates with colons between them.
func (s stack) places(list string) ([]place, error) {
	var ps []place
	for _, t := range strings.Split(list, ":") {
		var from, to int
		var dir string
		if m := mountedImage.FindStringSubmatch(t); m != nil {
			from, _ = strconv.Atoi(m[1])
			to, dir = from, strings.TrimPrefix(m[2], "/")
		} else if m := allImages.FindStringSubmatch(t); m != nil {
			from, _ = strconv.Atoi(m[1])
			to, _ = strconv.Atoi(m[2])
		} else {
			return nil, unsupported("%q in the root filesystem's last mount is not one of its images, which is not implemented", t)
		}
		if max(from, to) >= len(s) {
			return nil, invalid("%q in the root filesystem's last mount names an image that is not there: it has %d", t, len(s))
		}
		if dir != "" && !filepath.IsLocal(dir) {
			return nil, invalid("%q in the root filesystem's last mount leads out of its image", t)
		}
		step := 1
		if from > to {
			step = -1
		}
		for i := from; ; i += step {
			ps = append(ps, place{i, dir})
			if i == to {
				break
			}
		}
	}
	return ps, nil
}
