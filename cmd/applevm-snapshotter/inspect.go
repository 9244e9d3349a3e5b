package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/applevm/applevm/snapshotter/ext4"
)

// maxListed is how many names of one image are listed. It is the most that a
// layer can have; an image made to do harm may show more than it holds.
const maxListed = ext4.DefaultMaxEntries

// inspect describes an image and lists its files.
func inspect(ctx context.Context, c *call) error {
	flags := new(flag.FlagSet)
	tree := flags.Bool("tree", true, "list the files; -tree=false leaves them out")
	operands, err := c.parse(flags)
	if err != nil {
		return err
	}
	if err := inspectFile(ctx, operands[0], *tree, c.out); err != nil {
		return lineError{fmt.Errorf("inspect %s: %w", operands[0], err)}
	}
	return nil
}

func inspectFile(ctx context.Context, path string, tree bool, out io.Writer) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() && st.Mode().Type() != fs.ModeDevice {
		return errors.New("it is neither a regular file nor a disk")
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd) // a disk's size is not in its inode
	if err != nil {
		return err
	}
	fsys, err := ext4.Open(f, size)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	writeInfo(w, fsys.Info())
	fmt.Fprintf(w, "size      %s\n", sizeText(size))
	fmt.Fprintf(w, "allocated %s\n", sizeText(allocated(st)))
	if tree {
		fmt.Fprintln(w)
		err = writeTree(ctx, w, fsys.Walk(), maxListed)
	}
	return errors.Join(err, w.Flush())
}

func writeInfo(w io.Writer, i ext4.Info) {
	fmt.Fprintf(w, "UUID      %x-%x-%x-%x-%x\n", i.UUID[:4], i.UUID[4:6], i.UUID[6:8], i.UUID[8:10], i.UUID[10:])
	fmt.Fprintf(w, "features  %s\n", strings.Join(i.Features, " "))
	fmt.Fprintf(w, "blocks    %d of %d bytes: %d used, %d free\n", i.Blocks, i.BlockSize, i.Blocks-i.FreeBlocks, i.FreeBlocks)
	fmt.Fprintf(w, "inodes    %d: %d used, %d free\n", i.Inodes, i.Inodes-i.FreeInodes, i.FreeInodes)
}

// writeTree writes a line for each entry, at most limit. What cannot be read
// has a line that says so, and is counted in the error.
func writeTree(ctx context.Context, w *bufio.Writer, entries iter.Seq2[ext4.Entry, error], limit int) error {
	n, bad := 0, 0
	for e, err := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n == limit {
			return fmt.Errorf("more than %d names: the rest is not listed", limit)
		}
		n++
		if err != nil {
			bad++
			_, err = fmt.Fprintf(w, "?%21s %s: %s\n", "", quote(e.Path), line(err.Error()))
		} else {
			err = writeEntry(w, e)
		}
		if err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d names cannot be read: their lines begin with \"?\"", bad, n)
	}
	return nil
}

// writeEntry writes what ls -l does, with a time that sorts and the names of
// extended attributes at the end.
func writeEntry(w io.Writer, e ext4.Entry) error {
	s := &e.Stat
	size := fmt.Sprint(s.Size)
	mode := modeString(s.Mode)
	if mode[0] == 'c' || mode[0] == 'b' {
		size = fmt.Sprintf("%d:%d", s.Major, s.Minor)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %11s %10s %s %s", mode, fmt.Sprintf("%d:%d", s.UID, s.GID), size, s.Mtime.UTC().Format(time.RFC3339), quote(e.Path))
	if mode[0] == 'l' {
		b.WriteString(" -> " + quote(e.Target))
	}
	if len(e.Xattrs) > 0 {
		names := slices.Sorted(maps.Keys(e.Xattrs))
		for i := range names {
			names[i] = quote(names[i])
		}
		fmt.Fprintf(&b, " [%s]", strings.Join(names, " "))
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

// modeString writes a mode of stat(2) as ls does.
func modeString(mode uint32) string {
	s := []byte("?rwxrwxrwx")
	if t := strings.IndexByte("\x01\x02\x04\x06\x08\x0a\x0c", byte(mode>>12)); t >= 0 {
		s[0] = "pcdb-ls"[t]
	}
	for i := range 9 {
		if mode>>(8-i)&1 == 0 {
			s[1+i] = '-'
		}
	}
	for _, x := range []struct {
		bit uint32
		at  int
		set byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if mode&x.bit == 0 {
			continue
		}
		if s[x.at] == '-' { // without the right to execute, ls has a capital
			x.set -= 'a' - 'A'
		}
		s[x.at] = x.set
	}
	return string(s)
}
