package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestReaderGetsWhatWriterSent(t *testing.T) {
	for _, n := range []int{0, 1, MaxFrame - 1, MaxFrame, MaxFrame + 1, 3*MaxFrame + 7} {
		want := bytes.Repeat([]byte("0123456789"), n/10+1)[:n]
		var wire bytes.Buffer
		w := NewWriter(&wire)
		if _, err := w.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(want); !errors.Is(err, ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		wire.WriteString("not of this stream")
		got, err := io.ReadAll(NewReader(iotest.OneByteReader(&wire)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d bytes, error %v", n, len(got), err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	frame := func(n uint32, b string) string {
		return string(binary.BigEndian.AppendUint32(nil, n)) + b
	}
	tests := []struct {
		name, wire, want string
		err              error
	}{
		{"cut before a header", "", "", io.ErrUnexpectedEOF},
		{"cut in a header", "\x00\x00", "", io.ErrUnexpectedEOF},
		{"cut in a frame", frame(3, "ab"), "ab", io.ErrUnexpectedEOF},
		{"cut after a frame", frame(2, "ab"), "ab", io.ErrUnexpectedEOF},
		{"frame too long", frame(MaxFrame+1, "ab"), "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := io.ReadAll(NewReader(bytes.NewBufferString(tt.wire)))
			if err == nil || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if string(got) != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestToken(t *testing.T) {
	a := NewToken()
	if b, err := ParseToken(a.String()); err != nil || b != a {
		t.Errorf("ParseToken(%q) = %v, %v", a, b, err)
	}
	for _, s := range []string{"", "stream:", "stream:00", a.String() + "00", "fifo:" + a.String()[7:], "stream:zz" + a.String()[9:]} {
		if _, err := ParseToken(s); err == nil {
			t.Errorf("ParseToken(%q) succeeded", s)
		}
	}
}

// FuzzReader feeds what a hostile guest may send: no panic, no endless loop,
// never more bytes out than came in.
func FuzzReader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'a', 'b', 0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, wire []byte) {
		got, _ := io.ReadAll(NewReader(bytes.NewReader(wire)))
		if len(got) > len(wire) {
			t.Errorf("%d bytes out of %d", len(got), len(wire))
		}
	})
}
