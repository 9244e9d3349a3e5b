package machine

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/applevm/applevm/guest/api"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain\tline\n":        "plain\tline\n",
		"dos\r\n":              "dos\n",
		"\x1b[2Jcleared":       "\uFFFD[2Jcleared",
		"broken \xff\xfe":      "broken \uFFFD",
		"nul\x00bidi\u202etxt": "nul\uFFFDbidi\uFFFDtxt",
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q) is %q, want %q", in, got, want)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("x\x1b\x00")
	f.Add(strings.Repeat("é", api.MaxErrorText))
	f.Fuzz(func(t *testing.T, s string) {
		got := Text(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) {
			t.Errorf("Text(%q) is %q", s, got)
		}
		// One byte that is not UTF-8 becomes three.
		if len(got) > 3*(api.MaxErrorText+1) {
			t.Errorf("%d bytes from %d", len(got), len(s))
		}
	})
}
