package plan

import (
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
)

func ext4Mount(options ...string) *types.Mount {
	return &types.Mount{Type: "ext4", Source: "/host/rw.img", Options: append([]string{"loop"}, options...)}
}

func erofsMount(name string) *types.Mount {
	return &types.Mount{Type: "erofs", Source: "/host/" + name, Options: []string{"ro", "loop"}}
}

func TestImages(t *testing.T) {
	a, b := Image{Path: "/host/a", FSType: "erofs"}, Image{Path: "/host/b", FSType: "erofs"}
	rw := &Image{Path: "/host/rw.img", FSType: "ext4"}
	changes := []string{
		"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
		"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper",
	}
	overlay := func(typ string, options ...string) *types.Mount {
		return &types.Mount{Type: typ, Source: "overlay", Options: options}
	}
	for _, tc := range []struct {
		name   string
		mounts []*types.Mount
		want   Rootfs
	}{
		{"topmost named first", []*types.Mount{
			ext4Mount("rw"), erofsMount("b"), erofsMount("a"),
			overlay("format/mkdir/overlay", append(changes, "lowerdir={{ mount 1 }}:{{ mount 2 }}")...),
		}, Rootfs{Layers: []Image{a, b}, Writable: rw}},
		{"a row", []*types.Mount{
			ext4Mount("rw"), erofsMount("b"), erofsMount("a"),
			overlay("format/mkdir/overlay", append(changes, "lowerdir={{ overlay 1 2 }}", "index=off")...),
		}, Rootfs{Layers: []Image{a, b}, Writable: rw}},
		{"a row backwards", []*types.Mount{erofsMount("a"), erofsMount("b"), overlay("format/overlay", "lowerdir={{ overlay 1 0 }}")},
			Rootfs{Layers: []Image{a, b}}},
		{"a directory of an image", []*types.Mount{erofsMount("a"), overlay("format/overlay", "lowerdir={{ mount 0 }}/root/fs")},
			Rootfs{Layers: []Image{{Path: "/host/a", FSType: "erofs", Directory: "root/fs"}}}},
		{"one image", []*types.Mount{erofsMount("a")}, Rootfs{Layers: []Image{a}}},
		{"a bind of one image", []*types.Mount{erofsMount("a"), {Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}}},
			Rootfs{Layers: []Image{a}}},
		{"a bind of the changes", []*types.Mount{ext4Mount("rw"), {Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper", Options: []string{"rw", "rbind"}}},
			Rootfs{Writable: rw}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := FindRootfs(tc.mounts)
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tc.want)
			}
		})
	}
}

func TestImagesRefused(t *testing.T) {
	const up, work = "upperdir={{ mount 0 }}/upper", "workdir={{ mount 0 }}/work"
	final := func(options ...string) *types.Mount {
		return &types.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: options}
	}
	for _, tc := range []struct {
		name   string
		mounts []*types.Mount
		is     func(error) bool
		err    string
	}{
		{"no such image", []*types.Mount{erofsMount("a"), final("lowerdir={{ mount 1 }}")}, errdefs.IsInvalidArgument, "it has 1"},
		{"a row too long", []*types.Mount{erofsMount("a"), final("lowerdir={{ overlay 0 9999 }}")}, errdefs.IsInvalidArgument, "it has 1"},
		{"a directory of the host", []*types.Mount{erofsMount("a"), final("lowerdir=/etc")}, errdefs.IsNotImplemented, `"/etc"`},
		{"changes to a directory of the host", []*types.Mount{erofsMount("a"), final("workdir=/w", "upperdir=/u", "lowerdir={{ mount 0 }}")}, errdefs.IsNotImplemented, "default_size"},
		{"out of the image", []*types.Mount{erofsMount("a"), final("lowerdir={{ mount 0 }}/../etc")}, errdefs.IsInvalidArgument, "leads out"},
		{"other changes", []*types.Mount{ext4Mount(), erofsMount("a"), final("lowerdir={{ mount 1 }}", "upperdir={{ mount 0 }}/other", work)}, errdefs.IsNotImplemented, `"other"`},
		{"changes to a layer", []*types.Mount{erofsMount("a"), final("lowerdir={{ mount 0 }}", up, work)}, errdefs.IsInvalidArgument, "read-only"},
		{"no work directory", []*types.Mount{ext4Mount(), erofsMount("a"), final("lowerdir={{ mount 1 }}", up)}, errdefs.IsInvalidArgument, "one workdir"},
		{"changes and work apart", []*types.Mount{ext4Mount(), ext4Mount(), final(up, "workdir={{ mount 1 }}/work")}, errdefs.IsInvalidArgument, "same image"},
		{"other programs", []*types.Mount{erofsMount("a"), final("lowerdir={{ source 0 }}")}, errdefs.IsNotImplemented, "source 0"},
		{"a relative path", []*types.Mount{{Type: "erofs", Source: "a"}}, errdefs.IsInvalidArgument, "absolute"},
		{"more devices", []*types.Mount{{Type: "erofs", Source: "/a", Options: []string{"device=/b"}}}, errdefs.IsNotImplemented, "device=/b"},
		{"a writable image alone", []*types.Mount{ext4Mount("rw")}, errdefs.IsNotImplemented, "1 images"},
		{"images without an end", []*types.Mount{erofsMount("a"), erofsMount("b")}, errdefs.IsNotImplemented, "2 images"},
		{"another kind among them", []*types.Mount{erofsMount("a"), {Type: "tmpfs"}, final("lowerdir={{ mount 0 }}")}, errdefs.IsNotImplemented, `"tmpfs"`},
		{"another kind at the end", []*types.Mount{erofsMount("a"), {Type: "mkfs/overlay"}}, errdefs.IsNotImplemented, `"mkfs/overlay"`},
		{"an unknown option", []*types.Mount{erofsMount("a"), final("lowerdir={{ mount 0 }}", "nfs_export=on")}, errdefs.IsNotImplemented, "nfs_export"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := FindRootfs(tc.mounts); err == nil || !tc.is(err) || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
}
