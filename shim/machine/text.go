package machine

import (
	"strings"
	"unicode"

	"github.com/applevm/applevm/guest/api"
)

// Printable makes text from the guest fit to be shown: no control characters
// but line ends and tabs, no broken UTF-8.
func Printable(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return r
		case r == '\r':
			return -1
		case !unicode.IsPrint(r):
			return '\uFFFD'
		}
		return r
	}, s)
}

// Text is Printable for a text of any length: what goes beyond api.MaxErrorText
// bytes is cut.
func Text(s string) string {
	if len(s) > api.MaxErrorText {
		s = s[:api.MaxErrorText] + "…"
	}
	return Printable(s)
}

// textError is an error whose text came, in part, from the guest.
type textError struct {
	text string
	err  error
}

func (e *textError) Error() string { return e.text }
func (e *textError) Unwrap() error { return e.err }

// printable makes the text of err fit to be shown and keeps what it is.
func printable(err error) error { return &textError{text: Printable(err.Error()), err: err} }
