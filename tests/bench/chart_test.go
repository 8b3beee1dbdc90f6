package bench

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// Sizes of a chart, in pixels.
const (
	chartWidth = 720
	chartLeft  = 190 // of bars: room for their names
	barHeight  = 30
	plotHeight = 300
)

// inks are the columns' colours, told apart by those who see no red or no green, too.
var inks = []string{"#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#999999"}

// charts draws the run, by file name.
func (r *peersRun) charts() map[string]string {
	start := []bar{{"crun alone", ms(r.Floor.Took.at(floorRun, .5)), inks[len(inks)-1]}}
	var memory []bar
	for i, p := range r.Peers {
		start = append(start, bar{p.Name, ms(p.Took.at(up, .5)), inks[i]})
		memory = append(memory, bar{p.Name, float64(p.PodPSS), inks[i]})
	}
	return map[string]string{
		"start.svg":  bars("A pod with one container up, milliseconds", start),
		"memory.svg": bars("Memory of one more pod without its workload, KiB PSS", memory),
		"pods.svg":   r.podsChart(),
	}
}

type bar struct {
	name  string
	value float64
	ink   string
}

// bars draws one bar a line.
func bars(title string, all []bar) string {
	most := 1.0
	for _, b := range all {
		most = max(most, b.value)
	}
	const top, room = 44, 70
	var out strings.Builder
	svg(&out, title, top+barHeight*len(all)+12)
	for i, b := range all {
		y, width := top+i*barHeight, b.value/most*(chartWidth-chartLeft-room)
		fmt.Fprintf(&out, `<text x="%d" y="%d" text-anchor="end">%s</text>`, chartLeft-8, y+19, html.EscapeString(b.name))
		fmt.Fprintf(&out, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, chartLeft, y+3, max(width, 1), barHeight-8, b.ink)
		fmt.Fprintf(&out, `<text x="%.1f" y="%d">%.0f</text>`+"\n", chartLeft+width+6, y+19, b.value)
	}
	out.WriteString("</svg>\n")
	return out.String()
}

func svg(out *strings.Builder, title string, height int) {
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="13" fill="#222">`+"\n", chartWidth, height)
	fmt.Fprintf(out, `<title>%[1]s</title><rect width="100%%" height="100%%" fill="#fff"/><text x="14" y="26" font-size="15" font-weight="bold">%[1]s</text>`+"\n", html.EscapeString(title))
}

// podsChart draws how long each pod took, against the pods that ran already, both on
// logarithmic axes: 1 to 1,000 pods, 10 ms to seconds.
func (r *peersRun) podsChart() string {
	const left, top, right = 60, 50, 170
	width := float64(chartWidth - left - right)
	pods, least, most := 10, math.Inf(1), 0.0
	for _, p := range r.Peers {
		pods = max(pods, len(p.Up))
		for _, d := range smooth(p.Up) {
			least, most = min(least, ms(d)), max(most, ms(d))
		}
	}
	if most == 0 {
		least, most = 10, 100
	}
	low, high := math.Floor(math.Log10(least)), math.Ceil(math.Log10(most))
	high = max(high, low+1)
	x := func(n float64) float64 { return left + width*math.Log10(n)/math.Log10(float64(pods)) }
	y := func(ms float64) float64 { return top + plotHeight*(high-math.Log10(ms))/(high-low) }
	var out strings.Builder
	svg(&out, "The next pod, milliseconds, by the pods that run already", top+plotHeight+40)
	for e := low; e <= high; e++ {
		v := math.Pow(10, e)
		fmt.Fprintf(&out, `<line x1="%d" x2="%.1f" y1="%.1f" y2="%[3]f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n",
			left, left+width, y(v), left-6, y(v)+4, v)
	}
	for n := 1; n <= pods; n *= 10 {
		fmt.Fprintf(&out, `<line x1="%.1f" x2="%[1]f" y1="%d" y2="%d" stroke="#ddd"/><text x="%[1]f" y="%[4]d" text-anchor="middle">%[5]d</text>`+"\n",
			x(float64(n)), top, top+plotHeight, top+plotHeight+18, n)
	}
	for i, p := range r.Peers {
		if len(p.Up) == 0 {
			continue
		}
		var points strings.Builder
		for n, d := range smooth(p.Up) {
			fmt.Fprintf(&points, "%.1f,%.1f ", x(float64(n+1)), y(ms(d)))
		}
		fmt.Fprintf(&out, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.TrimSpace(points.String()), inks[i])
		fmt.Fprintf(&out, `<rect x="%.0f" y="%d" width="12" height="12" fill="%s"/><text x="%.0f" y="%d">%s</text>`+"\n",
			left+width+14, top+i*22, inks[i], left+width+32, top+11+i*22, html.EscapeString(p.Name))
	}
	out.WriteString("</svg>\n")
	return out.String()
}

// smooth takes the median of each and those around it: more of them where more are.
func smooth(all []time.Duration) []time.Duration {
	out := make([]time.Duration, len(all))
	for i := range all {
		around := min(i/4, 25)
		out[i] = median(all[max(0, i-around):min(len(all), i+around+1)])
	}
	return out
}
