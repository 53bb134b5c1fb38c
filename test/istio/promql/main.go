// Checks alerting rules, and evaluates queries over scrapes of Envoy, with Prometheus's own parser
// and engine.
//
// Standard input: {"rules": "<file>", "queries": ["<PromQL>"], "scrapes": ["<file>"]}. The scrapes
// are 15 s apart, and queries are evaluated at the time of the last one. Standard output: a list
// that has {"series": <number>} or {"error": "<why>"} for each query.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb"
)

const interval = 15 * time.Second

type input struct {
	Rules   string   `json:"rules"`
	Queries []string `json:"queries"`
	Scrapes []string `json:"scrapes"`
}

type result struct {
	Series int    `json:"series"`
	Error  string `json:"error,omitempty"`
}

func main() {
	results, err := run()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(results)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() ([]result, error) {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return nil, err
	}
	language := parser.NewParser(parser.Options{})
	if _, errs := rulefmt.ParseFile(in.Rules, false, model.UTF8Validation, language); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	folder, err := os.MkdirTemp("", "promql")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	db, err := tsdb.Open(folder, nil, nil, tsdb.DefaultOptions(), nil)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	start := time.Now().Add(-time.Duration(len(in.Scrapes)) * interval)
	last := start
	for i, file := range in.Scrapes {
		last = start.Add(time.Duration(i) * interval)
		if err := store(db, file, last); err != nil {
			return nil, err
		}
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: language})
	var results []result
	for _, text := range in.Queries {
		results = append(results, evaluate(engine, db, text, last))
	}
	return results, nil
}

func evaluate(engine *promql.Engine, db *tsdb.DB, text string, at time.Time) result {
	query, err := engine.NewInstantQuery(context.Background(), db, nil, text, at)
	if err != nil {
		return result{Error: err.Error()}
	}
	defer query.Close()
	found := query.Exec(context.Background())
	if found.Err != nil {
		return result{Error: found.Err.Error()}
	}
	vector, err := found.Vector()
	if err != nil {
		return result{Error: err.Error()}
	}
	return result{Series: len(vector)}
}

// Stores a scrape in the text format of Prometheus.
func store(db *tsdb.DB, path string, at time.Time) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	text := expfmt.NewTextParser(model.UTF8Validation)
	families, err := text.TextToMetricFamilies(file)
	if err != nil {
		return err
	}
	appender := db.Appender(context.Background())
	for name, family := range families {
		for _, metric := range family.Metric {
			named := func(suffix, label, value string) labels.Labels {
				all := map[string]string{"__name__": name + suffix, "job": "envoy", "instance": "test"}
				for _, pair := range metric.Label {
					all[pair.GetName()] = pair.GetValue()
				}
				if label != "" {
					all[label] = value
				}
				return labels.FromMap(all)
			}
			add := func(ls labels.Labels, value float64) {
				if err == nil {
					_, err = appender.Append(0, ls, at.UnixMilli(), value)
				}
			}
			switch {
			case metric.Histogram != nil:
				h := metric.Histogram
				for _, bucket := range h.Bucket {
					le := fmt.Sprint(bucket.GetUpperBound())
					if math.IsInf(bucket.GetUpperBound(), 1) {
						le = "+Inf"
					}
					add(named("_bucket", "le", le), float64(bucket.GetCumulativeCount()))
				}
				add(named("_sum", "", ""), h.GetSampleSum())
				add(named("_count", "", ""), float64(h.GetSampleCount()))
			case metric.Counter != nil:
				add(named("", "", ""), metric.Counter.GetValue())
			case metric.Gauge != nil:
				add(named("", "", ""), metric.Gauge.GetValue())
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return appender.Commit()
}
