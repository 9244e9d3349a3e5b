package sparsetar_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
)

// readLimit is how much of one file is compared: a few bytes of tar can
// describe any size.
const readLimit = 1 << 20

// expand reads the current entry as archive/tar shows it, up to readLimit.
func expand(r *sparsetar.Reader, size int64) ([]byte, error) {
	list, sparse := r.Fragments()
	if !sparse {
		return io.ReadAll(io.LimitReader(r, readLimit))
	}
	out := make([]byte, min(size, readLimit))
	for _, f := range list {
		if f.End() > readLimit {
			break
		}
		if _, err := io.ReadFull(r, out[f.Offset:f.End()]); err != nil {
			return nil, err
		}
	}
	if n := len(list); n == 0 || list[n-1].End() <= readLimit {
		if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%d bytes (%w) behind the data", n, err)
		}
	}
	return out, nil
}

// withoutMap is h without the records that Reader leaves out.
func withoutMap(h tar.Header) tar.Header {
	h.PAXRecords = maps.Clone(h.PAXRecords)
	maps.DeleteFunc(h.PAXRecords, func(k, _ string) bool { return strings.HasPrefix(strings.ToLower(k), "gnu.sparse.") })
	return h
}

// compare reads b with archive/tar and with Reader: both show the same entries
// and leave the same rest, or both fail. It returns the number of entries and
// the error that ended them.
func compare(t testing.TB, b []byte) (entries int, end error) {
	t.Helper()
	plainSrc, sparseSrc := bytes.NewReader(b), bytes.NewReader(b)
	// Seek would let archive/tar skip what is missing.
	plain := tar.NewReader(struct{ io.Reader }{plainSrc})
	sparse := sparsetar.NewReader(struct{ io.Reader }{sparseSrc})
	for ; ; entries++ {
		want, wantErr := plain.Next()
		got, gotErr := sparse.Next()
		var body []byte
		if wantErr == nil {
			body, wantErr = io.ReadAll(io.LimitReader(plain, readLimit))
			if wantErr == nil && gotErr != nil && want.Size >= readLimit {
				return entries, gotErr // archive/tar would find it at the file's end
			}
		}
		var gotBody []byte
		if gotErr == nil {
			gotBody, gotErr = expand(sparse, got.Size)
		}
		if (wantErr == nil) != (gotErr == nil) || errors.Is(wantErr, io.EOF) != errors.Is(gotErr, io.EOF) {
			t.Fatalf("entry %d: %v, archive/tar: %v", entries, gotErr, wantErr)
		}
		if wantErr != nil {
			if errors.Is(wantErr, io.EOF) && plainSrc.Len() != sparseSrc.Len() {
				t.Fatalf("%d bytes are left behind the end, archive/tar leaves %d", sparseSrc.Len(), plainSrc.Len())
			}
			if _, err := sparse.Next(); !errors.Is(err, gotErr) {
				t.Fatalf("Next after %v: %v", gotErr, err)
			}
			return entries, gotErr
		}
		g, w := withoutMap(*got), withoutMap(*want)
		if _, isSparse := sparse.Fragments(); !isSparse {
			g, w = *got, *want
		}
		if w.Typeflag == tar.TypeXGlobalHeader && w.PAXRecords == nil {
			// archive/tar overlooks a damaged record here, after it has taken
			// those before it, in the random order of a map.
			g, w = tar.Header{}, tar.Header{}
		}
		if !reflect.DeepEqual(g, w) {
			t.Fatalf("entry %d:\n%#v, archive/tar:\n%#v", entries, g, w)
		}
		if !bytes.Equal(gotBody, body) {
			t.Fatalf("entry %d, %q: contents differ: %d bytes, archive/tar %d", entries, got.Name, len(gotBody), len(body))
		}
	}
}

// seal corrects the checksums of what looks like headers.
func seal(b []byte, sum func(*[512]byte)) {
	for ; len(b) >= 512; b = b[512:] {
		if bytes.HasPrefix(b[257:], []byte("ustar")) {
			sum((*[512]byte)(b))
		}
	}
}
