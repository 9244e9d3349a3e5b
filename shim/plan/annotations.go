package plan

import "strconv"

// boolAnnotation returns what an annotation says, and whether there is one of the name; fallback is
// what holds without.
func boolAnnotation(annotations map[string]string, name string, fallback bool) (v, given bool, err error) {
	text, given := annotations[name]
	if !given {
		return fallback, false, nil
	}
	if v, err = strconv.ParseBool(text); err != nil {
		return false, true, invalid("annotation %s is %q: use true or false", name, text)
	}
	return v, true, nil
}
