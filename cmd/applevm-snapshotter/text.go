package main

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// quote returns a name from elsewhere as one word that a terminal can show: as
// it is if it has neither blanks nor anything that Go would escape, else quoted.
func quote(name string) string {
	if q := strconv.Quote(name); len(q) != len(name)+2 || name == "" || strings.ContainsRune(name, ' ') {
		return q
	}
	return name
}

// line returns text from elsewhere as one line that a terminal can show:
// whatever is not printable is escaped.
func line(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if unicode.IsPrint(r) && (r != utf8.RuneError || size > 1) {
			b.WriteString(text[i : i+size])
		} else {
			b.WriteString(strings.Trim(strconv.Quote(text[i:i+size]), `"`))
		}
		i += size
	}
	return b.String()
}

// lineError is an error with its text as line shows it.
type lineError struct{ error }

func (e lineError) Error() string { return line(e.error.Error()) }
func (e lineError) Unwrap() error { return e.error }
