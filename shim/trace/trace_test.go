package trace

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWriteAppendsALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace")
	at := time.Unix(100, 5)
	for _, id := range []string{"a", "b"} {
		r := New("ns", id)
		r.MarkAt(ShimExec, at)
		r.MarkAt(CreateBegin, at.Add(time.Second))
		r.MarkAt(Exit, time.Time{})
		r.Guest("agent-start", 7)
		if got := r.Between(ShimExec, CreateBegin); got != time.Second {
			t.Errorf("%v between the marks", got)
		}
		if got := r.Between(ShimExec, Exit); got != 0 {
			t.Errorf("%v up to a mark that is missing", got)
		}
		if err := r.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	var rec Record
	if err := json.Unmarshal([]byte(lines[1]), &rec); err != nil {
		t.Fatal(err)
	}
	if rec.ID != "b" || rec.Namespace != "ns" || rec.Marks[ShimExec] != at.UnixNano() || len(rec.Marks) != 2 || rec.Guest["agent-start"] != 7 {
		t.Errorf("record %+v", rec)
	}
	if err := New("ns", "c").Write(""); err != nil {
		t.Errorf("no file: %v", err)
	}
}
