package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// pull pulls an image and shows the progress on standard error: a bar on a
// terminal, else an occasional line. Standard output stays free for the command
// that is run.
func pull(ctx context.Context, c *client.Client, req *api.PullRequest, quiet bool) error {
	p := &progress{ref: req.Ref, began: time.Now(), live: isTerminal(os.Stderr)}
	show := p.show
	if quiet {
		show = nil
	} else {
		p.start()
	}
	id, err := c.Pull(ctx, req, show)
	if !quiet {
		p.end(id, err)
	}
	return err
}

// progress shows the progress of a pull.
type progress struct {
	ref   string
	began time.Time
	live  bool
	last  time.Time
	shown string
	now   api.PullEvent
}

const (
	lineInterval = 5 * time.Second
	liveInterval = 80 * time.Millisecond
)

func (p *progress) start() {
	p.last = time.Now()
	if p.live {
		p.draw(fmt.Sprintf("%s: contacting the registry", p.ref))
		return
	}
	fmt.Fprintf(os.Stderr, "pulling %s\n", plain(p.ref))
}

func (p *progress) show(e *api.PullEvent) {
	p.now = *e
	interval := lineInterval
	if p.live {
		interval = liveInterval
	}
	if time.Since(p.last) < interval || e.Layers == 0 {
		return
	}
	p.last = time.Now()
	if p.live {
		p.draw(p.line())
		return
	}
	fmt.Fprintf(os.Stderr, "%s\n", p.line())
}

// line is "busybox: [=====>    ] 3/5 layers, 12.1M of 40.2M, 8.3M/s".
func (p *progress) line() string {
	e := p.now
	rate := float64(e.Downloaded) / max(time.Since(p.began).Seconds(), 0.001)
	text := fmt.Sprintf("%d/%d layers, %s", e.Done, e.Layers, bytesText(uint64(e.Downloaded)))
	if e.Total > 0 {
		text += " of " + bytesText(uint64(e.Total))
	}
	text += fmt.Sprintf(", %s/s", bytesText(uint64(rate)))
	if e.Total > 0 && e.Downloaded >= e.Total {
		text += ", unpacking"
	}
	if !p.live || e.Total <= 0 {
		return p.ref + ": " + text
	}
	const width = 24
	full := int(min(e.Downloaded*width/e.Total, width))
	bar := strings.Repeat("=", full)
	if full < width {
		bar += ">" + strings.Repeat(" ", width-full-1)
	}
	return fmt.Sprintf("%s: [%s] %s", p.ref, bar, text)
}

// draw replaces the current line of the terminal.
func (p *progress) draw(text string) {
	text = plain(text)
	if w, _, err := terminalSize(os.Stderr); err == nil && w > 1 && len(text) > int(w)-1 {
		text = text[:int(w)-1]
	}
	fmt.Fprintf(os.Stderr, "\r%s\x1b[K", text)
	p.shown = text
}

func (p *progress) end(id string, err error) {
	if p.live {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	if err != nil {
		return
	}
	took := time.Since(p.began)
	what := "up to date"
	if p.now.Downloaded > 0 {
		what = fmt.Sprintf("%d layers, %s in %s, %s/s", p.now.Layers, bytesText(uint64(p.now.Downloaded)),
			took.Round(100*time.Millisecond), bytesText(uint64(float64(p.now.Downloaded)/took.Seconds())))
	}
	fmt.Fprintf(os.Stderr, "pulled %s: %s (%s)\n", plain(p.ref), what, shortID(id))
}
