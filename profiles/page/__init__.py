"""The trade-off report's page: one HTML file that needs nothing else. `render_page` makes it of `page_data`."""

from profiles.page.rendering import render_page as render_page
