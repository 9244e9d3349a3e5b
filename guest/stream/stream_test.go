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
		sent := wire.Bytes()
		got, err := io.ReadAll(NewReader(iotest.OneByteReader(bytes.NewReader(sent))))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d bytes, error %v", n, len(got), err)
		}
		for _, r := range []io.Reader{bytes.NewReader(sent), iotest.HalfReader(bytes.NewReader(sent))} {
			var out bytes.Buffer
			if m, err := NewReader(r).WriteTo(&out); err != nil || m != int64(n) || !bytes.Equal(out.Bytes(), want) {
				t.Errorf("%d bytes: WriteTo got %d bytes, error %v", n, m, err)
			}
		}
	}
}

// The mark stands where it was sent: after the process's last byte, before those
// of others.
func TestMarkKeepsItsPlace(t *testing.T) {
	var wire bytes.Buffer
	w := NewWriter(&wire)
	_, _ = w.Write([]byte("its own"))
	if err := w.Mark(); err != nil {
		t.Fatal(err)
	}
	n := copy(w.Buffer(), "another's")
	if err := errors.Join(w.Send(0), w.Send(n), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := w.Mark(); !errors.Is(err, ErrClosed) {
		t.Errorf("mark after close: %v", err)
	}
	var out bytes.Buffer
	r := NewReader(&wire)
	var before string
	r.OnMark = func() { before = out.String() }
	if _, err := r.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	if before != "its own" || out.String() != "its ownanother's" {
		t.Errorf("before the mark %q, in all %q", before, out.String())
	}
}

// What a writer did not take stays for the next.
func TestWriteToStopsAtItsWritersError(t *testing.T) {
	var wire bytes.Buffer
	w := NewWriter(&wire)
	_, _ = w.Write([]byte("abc"))
	_ = w.Close()
	r := NewReader(&wire)
	full := errors.New("full")
	if n, err := r.WriteTo(writerFunc(func(p []byte) (int, error) { return 1, full })); n != 1 || !errors.Is(err, full) {
		t.Errorf("%d, %v", n, err)
	}
	if rest, err := io.ReadAll(r); string(rest) != "bc" || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

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
	f.Add([]byte{0x80, 0, 0, 0, 0, 0, 0, 1, 'a', 0x80, 0, 0, 0})
	f.Fuzz(func(t *testing.T, wire []byte) {
		got, rerr := io.ReadAll(NewReader(bytes.NewReader(wire)))
		if len(got) > len(wire) {
			t.Errorf("%d bytes out of %d", len(got), len(wire))
		}
		var out bytes.Buffer
		if _, err := NewReader(bytes.NewReader(wire)).WriteTo(&out); (err == nil) != (rerr == nil) || !bytes.Equal(out.Bytes(), got) {
			t.Errorf("WriteTo gives %q, %v, and Read %q, %v", out.Bytes(), err, got, rerr)
		}
	})
}
