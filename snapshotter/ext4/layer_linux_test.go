package ext4

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// short is what most cases want to see: all but times.
func (o observed) short() string {
	s, _, _ := strings.Cut(o.String(), " m")
	s = strings.ReplaceAll(s, " sum "+sumString(""), "")
	for _, k := range slices.Sorted(maps.Keys(o.Xattrs)) {
		s += fmt.Sprintf(" %s=%q", k, o.Xattrs[k])
	}
	return s
}

// reg is what a regular file with that body looks like.
func reg(perm string, links int, body string) string {
	s := fmt.Sprintf("f %s 0:0 n%d size %d", perm, links, len(body))
	if body != "" {
		s += " sum " + sumString(body)
	}
	return s
}

func at(name string, typ byte, mode int64) file {
	return file{Header: tar.Header{Name: name, Typeflag: typ, Mode: mode}}
}

func regular(name, body string) file {
	return file{Header: tar.Header{Name: name, Mode: 0o644}, body: body}
}

func link(name, target string) file {
	return file{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

func symlink(name, target string) file {
	return file{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
}

func withXattrs(f file, kv ...string) file {
	f.PAXRecords = map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		f.PAXRecords[paxXattr+kv[i]] = kv[i+1]
	}
	return f
}

// aclValue builds an ACL as tar carries it, of tag, permissions and id each.
func aclValue(fields ...uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, aclXattrVersion)
	for i := 0; i < len(fields); i += 3 {
		b = binary.LittleEndian.AppendUint16(b, uint16(fields[i]))
		b = binary.LittleEndian.AppendUint16(b, uint16(fields[i+1]))
		b = binary.LittleEndian.AppendUint32(b, fields[i+2])
	}
	return string(b)
}

const dir755 = "d 0755 0:0 n2"

func TestLayerLooksAsTheTarSays(t *testing.T) {
	long := strings.Repeat("n", 255)
	device := func(f file, major, minor int64) file {
		f.Devmajor, f.Devminor = major, minor
		return f
	}
	owned := func(f file, uid, gid int) file {
		f.Uid, f.Gid = uid, gid
		return f
	}
	acl := aclValue(aclUserObj, 7, aclNoID, aclUser, 4, 70000, aclGroupObj, 5, aclNoID, aclMask, 6, aclNoID, aclOther, 1, aclNoID)
	plainACL := aclValue(aclUserObj, 6, aclNoID, aclGroupObj, 4, aclNoID, aclOther, 0, aclNoID)
	big := strings.Repeat("v", 3900)

	tests := []struct {
		name  string
		files []file
		want  map[string]string
	}{
		{"empty", nil, map[string]string{"": dir755}},
		{
			"every type",
			[]file{
				at("./", tar.TypeDir, 0o750),
				at("d", tar.TypeDir, 0o1777),
				regular("d/file", "hello"),
				owned(at("suid", tar.TypeReg, 0o6755), 70000, 4000000000),
				at("fifo", tar.TypeFifo, 0o600),
				device(at("null", tar.TypeChar, 0o666), 1, 3),
				device(at("disk", tar.TypeBlock, 0o660), 259, 70000),
				symlink("sym", "d/file"),
				link("hard", "d/file"),
			},
			map[string]string{
				"":       "d 0750 0:0 n3",
				"d":      "d 1777 0:0 n2",
				"d/file": reg("0644", 2, "hello"),
				"hard":   reg("0644", 2, "hello"),
				"suid":   "f 6755 70000:4000000000 n1 size 0",
				"fifo":   "p 0600 0:0 n1",
				"null":   "c 0666 0:0 n1 dev 1:3",
				"disk":   "b 0660 0:0 n1 dev 259:70000",
				"sym":    `l 0777 0:0 n1 -> "d/file"`,
			},
		},
		{
			"names",
			[]file{
				regular("/abs/olute", "1"),
				regular("./a//b/./c", "2"),
				at("e/", tar.TypeDir, 0o700),
				regular(long, "3"),
				{Header: tar.Header{Name: "\xff\xfe bad utf8", Mode: 0o644, Format: tar.FormatGNU}},
				regular("new\nline", "4"),
				at("lost+found", tar.TypeDir, 0o711),
			},
			map[string]string{
				"": "d 0755 0:0 n6", "abs": dir755, "abs/olute": reg("0644", 1, "1"),
				"a": "d 0755 0:0 n3", "a/b": dir755, "a/b/c": reg("0644", 1, "2"),
				"e": "d 0700 0:0 n2", long: reg("0644", 1, "3"),
				"\xff\xfe bad utf8": reg("0644", 1, ""), "new\nline": reg("0644", 1, "4"),
				"lost+found": "d 0711 0:0 n2",
			},
		},
		{
			"symlink lengths",
			[]file{
				symlink("1", "x"), symlink("59", strings.Repeat("x", 59)),
				symlink("60", strings.Repeat("y", 60)), symlink("4095", strings.Repeat("z", 4095)),
			},
			map[string]string{
				"": dir755, "1": `l 0777 0:0 n1 -> "x"`,
				"59":   fmt.Sprintf("l 0777 0:0 n1 -> %q", strings.Repeat("x", 59)),
				"60":   fmt.Sprintf("l 0777 0:0 n1 -> %q", strings.Repeat("y", 60)),
				"4095": fmt.Sprintf("l 0777 0:0 n1 -> %q", strings.Repeat("z", 4095)),
			},
		},
		{
			"hard links",
			[]file{
				link("early", "dir/late"), // before its target
				link("chain", "early"),    // to a link that waits
				regular("dir/late", "L"),
				regular("old", "old"),
				link("keeps", "old"),
				regular("old", "new"), // the link keeps the old contents
				symlink("sym", "nowhere"),
				link("symlink too", "sym"),
				regular("over", "gone"),
				link("over", "dir/late"), // a link in place of a file
				link("old", "old"),       // to itself
				link("waits", "never"),   // replaced before its target is missed
				regular("waits", "w"),
			},
			map[string]string{
				"": "d 0755 0:0 n3", "dir": dir755,
				"dir/late": reg("0644", 4, "L"), "early": reg("0644", 4, "L"), "chain": reg("0644", 4, "L"), "over": reg("0644", 4, "L"),
				"old": reg("0644", 1, "new"), "keeps": reg("0644", 1, "old"),
				"sym": `l 0777 0:0 n2 -> "nowhere"`, "symlink too": `l 0777 0:0 n2 -> "nowhere"`,
				"waits": reg("0644", 1, "w"),
			},
		},
		{
			"replaced entries",
			[]file{
				regular("file", strings.Repeat("first", 9000)),
				regular("file", "last"),
				regular("tofile/sub/x", strings.Repeat("x", 5000)),
				regular("tofile", "f"),
				regular("todir", strings.Repeat("y", 5000)),
				at("todir", tar.TypeDir, 0o700),
				regular("todir/child", "c"),
				symlink("s", "elsewhere"),
				at("s", tar.TypeDir, 0o755),
				regular("s/in", "i"),
				regular("meta/kept", "k"),
				owned(at("meta", tar.TypeDir, 0o711), 5, 6),
			},
			map[string]string{
				"": "d 0755 0:0 n5", "file": reg("0644", 1, "last"), "tofile": reg("0644", 1, "f"),
				"todir": "d 0700 0:0 n2", "todir/child": reg("0644", 1, "c"),
				"s": dir755, "s/in": reg("0644", 1, "i"),
				"meta": "d 0711 5:6 n2", "meta/kept": reg("0644", 1, "k"),
			},
		},
		{
			"whiteouts",
			[]file{
				regular(".wh.gone", ""),
				regular("d/.wh.before", ""), regular("d/before", "b"),
				regular("d/after", "a"), regular("d/.wh.after", ""),
				regular("d/.wh.twice", ""), regular("d/.wh.twice", ""),
				regular("new/x", "x"), regular(".wh.new", ""), // a directory that replaces what was there
				regular("o/.wh..wh..opq", ""), regular("o/in", "i"),
				regular(".wh..wh.aufs", "m"), regular(".wh..wh.plnk/1.2", "m"),
			},
			map[string]string{
				"": "d 0755 0:0 n5", "gone": "c 0000 0:0 n1 dev 0:0",
				"d": dir755, "d/before": reg("0644", 1, "b"), "d/after": reg("0644", 1, "a"), "d/twice": "c 0000 0:0 n1 dev 0:0",
				"new": `d 0755 0:0 n2 trusted.overlay.opaque="y"`, "new/x": reg("0644", 1, "x"),
				"o": `d 0755 0:0 n2 trusted.overlay.opaque="y"`, "o/in": reg("0644", 1, "i"),
			},
		},
		{
			"opaque root",
			[]file{regular(".wh..wh..opq", ""), regular("x", "x")},
			map[string]string{"": `d 0755 0:0 n2 trusted.overlay.opaque="y"`, "x": reg("0644", 1, "x")},
		},
		{
			"extended attributes",
			[]file{
				withXattrs(regular("cap", ""), "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
				withXattrs(regular("large", ""), "user.big", big, "user.small", "s", "user.zero", "", "trusted.\xff", "\x00\x01"),
				withXattrs(regular("foreign", ""), "com.apple.quarantine", "q", "system.nfs4_acl", "n", "trusted.overlay.redirect", "/etc"),
				withXattrs(symlink("sym", "x"), "user.no", "n", "trusted.yes", "y"),
				withXattrs(at("d", tar.TypeDir, 0o750), "system.posix_acl_default", acl, "user.d", "d", "trusted.overlay.opaque", "y"),
			},
			map[string]string{
				"":        "d 0755 0:0 n3",
				"cap":     reg("0644", 1, "") + ` security.capability="\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`,
				"large":   reg("0644", 1, "") + fmt.Sprintf(` trusted.%s="\x00\x01" user.big=%q user.small="s" user.zero=""`, "\xff", big),
				"foreign": reg("0644", 1, ""),
				"sym":     `l 0777 0:0 n1 -> "x" trusted.yes="y"`,
				"d":       fmt.Sprintf(`d 0750 0:0 n2 system.posix_acl_default=%q user.d="d"`, acl),
			},
		},
		{
			"ACLs",
			[]file{
				withXattrs(regular("acl", ""), "system.posix_acl_access", acl),
				withXattrs(regular("plain", ""), "system.posix_acl_access", plainACL),
				withXattrs(symlink("sym", "x"), "system.posix_acl_access", acl),
			},
			map[string]string{
				"": dir755, "acl": reg("0761", 1, "") + fmt.Sprintf(" system.posix_acl_access=%q", acl),
				"plain": reg("0640", 1, ""), "sym": `l 0777 0:0 n1 -> "x"`,
			},
		},
		{
			"global header",
			[]file{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "c"}}}, regular("x", "x")},
			map[string]string{"": dir755, "x": reg("0644", 1, "x")},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			image, stats := convert(t, makeTar(t, tt.files...))
			got := observeBoth(t, image)
			for path, want := range tt.want {
				if o, ok := got[path]; !ok {
					t.Errorf("no %q", path)
				} else if s := o.short(); s != want {
					t.Errorf("%q:\ngot  %s\nwant %s", path, s, want)
				}
			}
			for path := range got {
				if _, ok := tt.want[path]; !ok {
					t.Errorf("unexpected %q: %s", path, got[path].short())
				}
			}
			if want := tt.name == "opaque root"; stats.OpaqueRoot != want {
				t.Errorf("OpaqueRoot is %v", stats.OpaqueRoot)
			}
		})
	}
}

func TestLayerTimes(t *testing.T) {
	tests := []struct {
		name     string
		in, want time.Time
	}{
		{"nanoseconds", time.Unix(1700000000, 123456789), time.Unix(1700000000, 123456789)},
		{"before 1970", time.Unix(-5, 999999999), time.Unix(-5, 999999999)},
		{"first", time.Unix(-1<<31, 0), time.Unix(-1<<31, 0)},
		{"after 2038", time.Unix(1<<31, 1), time.Unix(1<<31, 1)},
		{"after 2106", time.Unix(1<<32+7, 2), time.Unix(1<<32+7, 2)},
		{"last", time.Unix(maxTime, 999999999), time.Unix(maxTime, 999999999)},
		{"too early", time.Unix(-1<<31-1, 5), time.Unix(-1<<31, 0)},
		{"too late", time.Unix(maxTime+1, 5), time.Unix(maxTime, 0)},
	}
	var files []file
	for _, tt := range tests {
		f := regular(tt.name, "")
		f.ModTime = tt.in
		f.AccessTime = tt.in.Add(time.Nanosecond)
		f.ChangeTime = time.Unix(42, 0)
		files = append(files, f)
	}
	only := regular("only mtime", "")
	only.ModTime = time.Unix(77, 1)
	files = append(files, only)

	image, _ := convert(t, makeTar(t, files...))
	got := observeBoth(t, image)
	for _, tt := range tests {
		o := got[tt.name]
		if !o.Mtime.Equal(tt.want) {
			t.Errorf("%s: mtime %s, want %s", tt.name, stamp(o.Mtime), stamp(tt.want))
		}
		if !o.Ctime.Equal(time.Unix(42, 0)) {
			t.Errorf("%s: ctime %s, want 42", tt.name, stamp(o.Ctime))
		}
	}
	if o := got["before 1970"]; !o.Atime.Equal(time.Unix(-4, 0)) {
		t.Errorf("atime %s, want -4", stamp(o.Atime))
	}
	if o := got["only mtime"]; !o.Atime.Equal(only.ModTime) || !o.Ctime.Equal(only.ModTime) {
		t.Errorf("atime %s, ctime %s without such in the tar", stamp(o.Atime), stamp(o.Ctime))
	}
}

func TestManyXattrsAreFoundByTheKernel(t *testing.T) {
	// Names whose order by length differs from their order by bytes.
	var kv []string
	want := map[string]string{}
	for i := range 40 {
		name := "user." + strings.Repeat(string(rune('z'-i%26)), 1+i*7%11) + fmt.Sprint(i)
		value := strings.Repeat("v", i*5%60)
		kv = append(kv, name, value)
		want[name] = value
	}
	// More files than may share one attribute block.
	var files []file
	for i := range xattrMaxRefs + 10 {
		files = append(files, withXattrs(regular(fmt.Sprintf("f%04d", i), ""), kv...))
	}
	image, _ := convert(t, makeTar(t, files...))
	got := observeBoth(t, image)
	for path, o := range got {
		if path != "" && !maps.Equal(o.Xattrs, want) {
			t.Fatalf("%s: %v, want %v", path, o.Xattrs, want)
		}
	}
}

func TestContentsWithHoles(t *testing.T) {
	data := bytes.Repeat([]byte("d"), blockSize)
	zero := make([]byte, blockSize)
	pattern := func(n int, zeroAt func(i int) bool) string {
		var b bytes.Buffer
		for i := range n {
			if zeroAt(i) {
				b.Write(zero)
			} else {
				b.Write(data)
			}
		}
		return b.String()
	}
	bodies := map[string]string{
		"empty":          "",
		"one byte":       "x",
		"a zero byte":    "\x00",
		"block":          string(data),
		"block and more": string(data) + "x",
		"all zeros":      string(make([]byte, 10<<20+5)),
		"hole first":     string(zero) + "tail",
		"hole last":      "head" + string(make([]byte, 3*blockSize)),
		"five pieces":    pattern(10, func(i int) bool { return i%2 == 0 }),
		"many pieces":    pattern(700, func(i int) bool { return i%2 == 1 }),
		"deep tree":      pattern(6000, func(i int) bool { return i%4 < 2 }),
		"long runs":      pattern(3000, func(i int) bool { return i/300%2 == 0 }),
	}
	var files []file
	for _, name := range slices.Sorted(maps.Keys(bodies)) {
		files = append(files, regular(name, bodies[name]))
	}
	image, _ := convert(t, makeTar(t, files...))
	got := observeBoth(t, image)
	for name, body := range bodies {
		if o := got[name]; o.Size != int64(len(body)) || o.Sum != sumString(body) {
			t.Errorf("%s: size %d sum %s, want %d %s", name, o.Size, o.Sum, len(body), sumString(body))
		}
	}
	fsys := openImage(t, image)
	for name, want := range map[string]int64{"all zeros": 0, "hole last": 8, "five pieces": 5*8 + 8} {
		info, err := fsys.Lstat(DefaultRoot + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if n := info.Sys().(*Stat).Blocks; n != want {
			t.Errorf("%s: %d sectors, want %d", name, n, want)
		}
	}
}
