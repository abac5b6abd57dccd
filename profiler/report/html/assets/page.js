"use strict";
installTheme();
installToggles();
installSorting();
installCopying();
installCharts();
installCourse();
installWaterfalls();
document.documentElement.dataset.ready = "yes";
