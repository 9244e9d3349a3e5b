package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Row is one number of the table and of results.json.
type Row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Unit is empty if nothing could be measured.
	Unit string `json:"unit"`
	// Against says what the value is compared with, empty if with nothing, or why
	// the row is left out.
	Against string `json:"against"`
	// Ratio is value divided by what Against measured, 0 without one.
	Ratio float64 `json:"ratio"`
	// Target says what is aimed at, empty if nothing is.
	Target string `json:"target"`
	// Met tells whether the target is met; null without a target.
	Met *bool `json:"met"`
}

type report struct {
	keep func(name string) bool
	rows []Row
}

// add takes a row that stands for itself.
func (r *report) add(name string, value float64, unit string) {
	r.row(Row{Name: name, Value: value, Unit: unit})
}

// atMost takes a row whose value is to stay at or under limit.
func (r *report) atMost(name string, value float64, unit string, limit float64) {
	met := value <= limit
	r.row(Row{Name: name, Value: value, Unit: unit, Target: fmt.Sprintf("≤ %g %s", limit, unit), Met: &met})
}

// ratioAtMost takes a row whose value is to be at most limit times the base.
func (r *report) ratioAtMost(name string, value float64, unit, against string, base, limit float64) {
	ratio := value / base
	met := ratio <= limit
	r.row(Row{Name: name, Value: value, Unit: unit, Against: against, Ratio: ratio, Target: fmt.Sprintf("≤ %g ×", limit), Met: &met})
}

// beside takes a row with a comparison and no target.
func (r *report) beside(name string, value float64, unit, against string, base float64) {
	r.row(Row{Name: name, Value: value, Unit: unit, Against: against, Ratio: value / base})
}

// atMostBeside takes a row whose value is to stay at or under limit, with a comparison.
func (r *report) atMostBeside(name string, value float64, unit string, limit float64, against string, base float64) {
	met := value <= limit
	r.row(Row{Name: name, Value: value, Unit: unit, Against: against, Ratio: value / base, Target: fmt.Sprintf("≤ %g %s", limit, unit), Met: &met})
}

// leftOut takes a row that could not be measured here, and why.
func (r *report) leftOut(name, why string) {
	r.row(Row{Name: name, Against: "left out: " + why})
}

func (r *report) row(row Row) {
	if r.keep(row.Name) {
		r.rows = append(r.rows, row)
	}
}

func (r *report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "name\tvalue\tunit\tratio\tagainst\ttarget\tmet")
	for _, row := range r.rows {
		value, ratio, met := "", "", ""
		if row.Unit != "" { // measured
			value = fmt.Sprintf("%.4g", row.Value)
		}
		if row.Ratio != 0 {
			ratio = fmt.Sprintf("%.2f", row.Ratio)
		}
		if row.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*row.Met]
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Name, value, row.Unit, ratio, row.Against, row.Target, met)
	}
	_ = w.Flush()
}

// median returns the middle of values, which it sorts.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
