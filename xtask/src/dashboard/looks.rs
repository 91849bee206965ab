//! How the shapes of panels look in Grafana.

use serde_json::{Value, json};

use super::panels::Shape;

impl Shape {
    /// Grafana's name of the panel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stat | Self::Word => "stat",
            Self::Lines | Self::Stacked => "timeseries",
            Self::Heatmap => "heatmap",
            Self::Bars => "bargauge",
            Self::Table => "table",
        }
    }

    /// In Grafana's units.
    pub fn height(self) -> u64 {
        match self {
            Self::Stat | Self::Word => 4,
            _ => 8,
        }
    }

    /// How the series themselves are drawn.
    pub fn drawing(self, limited: bool) -> Value {
        let limit = json!({"mode": if limited { "line" } else { "off" }});
        match self {
            Self::Lines => json!({"lineWidth": 1, "showPoints": "never", "thresholdsStyle": limit}),
            Self::Stacked => json!({
                "lineWidth": 1, "fillOpacity": 25, "showPoints": "never", "stacking": {"mode": "normal", "group": "A"},
            }),
            _ => json!({}),
        }
    }

    /// Everything around the series.
    pub fn options(self, unit: &str) -> Value {
        let last = json!({"calcs": ["lastNotNull"], "fields": "", "values": false});
        match self {
            Self::Stat | Self::Word => json!({
                "reduceOptions": last,
                "graphMode": "none",
                "colorMode": "value",
                "textMode": if self == Self::Word { "name" } else { "auto" },
                "justifyMode": "auto",
            }),
            Self::Lines | Self::Stacked => json!({
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Self::Heatmap => json!({
                "calculate": false,
                "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
                "filterValues": {"le": 1e-9},
                "legend": {"show": true},
                "rowsFrame": {"layout": "auto"},
                "tooltip": {"mode": "single", "yHistogram": false},
                "yAxis": {"axisPlacement": "left", "unit": unit},
            }),
            Self::Bars => json!({
                "reduceOptions": last, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": true,
            }),
            Self::Table => json!({"showHeader": true, "cellHeight": "sm"}),
        }
    }
}
